"""Answer a recurring task with its small model in the format of the large one's answers, watched, and step back."""
