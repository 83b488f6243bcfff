"""Making a model that fails a check smaller, for as long as it fails in the same way."""
