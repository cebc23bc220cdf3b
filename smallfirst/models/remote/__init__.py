"""A model behind an OpenAI-compatible URL: HTTP session, retries, circuit breaker, response parsing."""
