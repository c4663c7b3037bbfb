"""Continuous batching: requests in, token events out. It knows neither the wire format nor the sources of models."""
