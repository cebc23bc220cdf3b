"""Search the large model's prompt on training and selection rows, within a budget."""
