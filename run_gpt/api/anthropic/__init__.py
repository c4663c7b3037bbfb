"""Anthropic's API: `/v1/messages`, and the count of a request's tokens."""
