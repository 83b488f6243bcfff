"""The deployment gate: a policy's limits, each measured on a model and judged."""
