"""Reading and writing model files: wire format, weights, external data, import, export, save."""
