"""The only home of prompt text, parsing and scoring."""
