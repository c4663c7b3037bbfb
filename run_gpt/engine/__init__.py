"""Continuous batching: requests in, token events out. Knows neither the wire nor where models come from."""
