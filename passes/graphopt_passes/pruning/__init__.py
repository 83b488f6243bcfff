"""Make models smaller by taking out what matters least: weights, channels, heads, layers."""
