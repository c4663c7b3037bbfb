"""Costs outside the model: of a gateway, of an executor beside its steps, and of a client."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """Processor seconds, where nothing else is said. measure_costs.py measures them; a default of 0 leaves one out."""

    gateway_request: float = 0.0
    """Cost of a streamed request."""
    gateway_event: float = 0.0
    """Cost of each event of a streamed request."""
    executor_event: float = 0.0
    client_event: float = 0.0
    gateway_probe: float = 0.0
    """Cost of one probe of a replica's state, in the gateway."""
    executor_probe: float = 0.0
    """Cost of one probe, in the executor."""
    channel_bytes: int = 0
    """Bytes of memory of one more replica in a gateway."""
    channel_files: float = 0.0
    """File descriptors of one more replica in a gateway."""
    choice: float = 0.0
    """Cost of comparing one replica when one is chosen for a request; a gateway compares all of them."""
    ready_seconds: float = 0.0
    """Seconds from a server's start until it is ready, with its model in the cache."""
