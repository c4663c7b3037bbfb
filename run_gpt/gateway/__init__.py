"""The gateway: the HTTP and gRPC doors, and the replica pool that both go through."""

import run_gpt.process._jina  # noqa: F401  (before anything here imports jina)
