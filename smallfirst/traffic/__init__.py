"""Recorded traffic: what applications ask a large model, and which part of it a small model could answer."""
