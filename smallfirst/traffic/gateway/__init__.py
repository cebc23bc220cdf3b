"""The proxy in front of a large model's API: pass through, record, and answer the tasks that were taken over."""
