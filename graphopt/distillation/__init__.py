"""Distillation of a model into another one of a different architecture: which tensors mean the same."""
