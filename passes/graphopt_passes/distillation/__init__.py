"""Passes by which a changed model learns again from the one that it was made of, layer by layer."""
