"""Recipes: TOML files, found by their names."""
