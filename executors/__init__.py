"""Jina Executors, one folder each."""

import run_gpt._jina  # noqa: F401  (before anything here imports jina)
