"""Passes that quantize weights and activations, and those that win the accuracy back."""
