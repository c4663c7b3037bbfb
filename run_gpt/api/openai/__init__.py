"""OpenAI's API on top of the native one: each request converts to native requests, and joins their answers."""
