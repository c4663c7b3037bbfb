"""Jina Executors, one folder each."""

import run_gpt.process._jina  # noqa: F401  (before anything here imports jina)
