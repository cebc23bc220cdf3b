"""Formats of answers: what a large model's answers have in common, read from them and written again byte for byte."""
