"""The runners: each runs a step of a model in a way of its own (see engine.runner)."""
