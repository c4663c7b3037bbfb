"""The gateway: the HTTP and gRPC ports, and the replica pool that both use."""

import run_gpt.process._jina  # noqa: F401  (before anything here imports jina)
