"""Benchmarks of a model in this process, and of a server from outside."""
