"""Typed questions about a state, in OpenAI's and TypeSafe's shapes: strict readers, writers, one form for both."""
