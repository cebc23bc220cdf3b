"""Time, memory and money of a fine-tune before it starts."""
