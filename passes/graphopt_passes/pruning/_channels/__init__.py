"""Channels that depend on each other: found, weighed, and cut out together."""
