"""Evidence: how far two models are apart, and whether that is within what was declared."""
