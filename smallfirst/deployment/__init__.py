"""Serve promoted models: load versions, swap them without dropping requests, audit the Router after go-live."""
