"""The verbs in front of a large model: pass traffic on, find its tasks, take them over; a module each."""
