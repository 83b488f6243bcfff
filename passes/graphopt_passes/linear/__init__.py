"""Convolutions and matrix products with a constant weight, seen as Y = X W^T: shared by passes on weights."""
