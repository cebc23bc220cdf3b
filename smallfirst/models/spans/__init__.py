"""Encoders that mark the answer in the text: fields of a JSON answer, or the answer to a question in its context."""
