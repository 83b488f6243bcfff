"""One module per model: the network, how it is trained, and how it is exported."""
