"""Calibration: data sources, streaming statistics, and running models to collect them."""
