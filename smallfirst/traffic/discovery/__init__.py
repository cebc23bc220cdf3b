"""Discovery: the recurring tasks in recorded traffic, what each costs, and which part of it can move."""
