"""Decide which model answers: cascade, policies, certificate."""
