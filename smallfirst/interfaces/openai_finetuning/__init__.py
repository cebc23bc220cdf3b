"""OpenAI's fine-tuning API on local jobs."""
