"""The built-in candidates, a module for each kind of model."""
