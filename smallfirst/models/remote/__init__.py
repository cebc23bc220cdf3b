"""A model behind an OpenAI-compatible URL: client, circuit breaker, response parsing."""
