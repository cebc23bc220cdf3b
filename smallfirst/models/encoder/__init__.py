"""Encoders of texts: token states and sentence vectors."""
