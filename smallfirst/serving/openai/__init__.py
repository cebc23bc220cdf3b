"""OpenAI's wire format: requests, responses, errors, limits of JSON."""
