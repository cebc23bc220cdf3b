"""Policies: decide by the request alone where it goes before anything is drafted."""
