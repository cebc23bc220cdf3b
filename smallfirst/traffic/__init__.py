"""Recorded traffic: what applications ask a large model, which part a small one could answer, and the proxy."""
