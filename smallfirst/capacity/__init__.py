"""Capacity: how many machines a volume of requests needs, from measured service times and a queueing simulation."""
