"""Passes that leave out what matters little: single weights, channels, whole layers."""
