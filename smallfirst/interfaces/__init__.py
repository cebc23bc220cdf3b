"""Doors that users of other products know already, each onto the same jobs, registry and models."""
