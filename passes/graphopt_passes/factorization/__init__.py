"""Passes that write a layer as the product of smaller ones."""
