"""Templates: the constant part of prompts that a program wrote, and the slots in which the cases stand."""
