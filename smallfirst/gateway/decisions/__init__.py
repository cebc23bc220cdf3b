"""Typed questions in OpenAI's and TypeSafe's shapes: each distinct question is a task."""
