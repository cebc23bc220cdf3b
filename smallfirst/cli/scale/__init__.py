"""The verbs beyond one machine: batch scoring, sweeps, capacity; a module each."""
