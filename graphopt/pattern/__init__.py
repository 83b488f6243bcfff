"""Declarative patterns over the graph."""
