"""Passes that remove what does nothing, or is there twice."""
