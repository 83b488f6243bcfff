"""Passes that replace several operators by one that computes the same."""
