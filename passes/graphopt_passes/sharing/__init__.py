"""Passes that let weights share values, or share weights whole."""
