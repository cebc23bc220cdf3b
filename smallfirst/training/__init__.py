"""Rows and a base model to a Run."""
