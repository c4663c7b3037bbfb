"""Runners: each has its own way to run a step of a model (see engine.runner)."""
