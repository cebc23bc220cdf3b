"""Record the answers of a model and replay them."""
