"""Passes that remove what has no effect, and merge what one node can do."""
