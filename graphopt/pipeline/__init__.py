"""What a pass is, how pipelines are written down, and what runs them."""
