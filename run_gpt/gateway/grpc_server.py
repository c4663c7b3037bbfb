"""The gRPC server: its services, and its bounds for connections and calls."""

from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from run_gpt.gateway.grpc_health import Health
from run_gpt.gateway.rpc import Servicer
from run_gpt.gateway.service import Service

MOST_CONNECTIONS, MOST_OF_ADDRESS = 4096, 1024
"""Most connections to the gRPC port, and of one address among them."""
MOST_STREAMS = 1024
"""Most calls at once over one gRPC connection."""
HANDSHAKE_SECONDS = 10
"""Time in which a new gRPC connection must begin to speak HTTP/2, and in which a keepalive ping must be answered."""
IDLE_SECONDS = 300
"""Time after which a gRPC connection without calls is closed."""
KEEPALIVE_SECONDS = 60
"""Silence after which a gRPC client is asked if it is still there."""

STOP_SECONDS = 0.5
"""Time that calls get to end after the drain. An idle client does not end its connection, and there are only ends to
write."""


def build_server(service: Service, interceptors: Sequence[Any]) -> Any:
    """Return a `grpc.aio.Server` with our services, health and reflection; it has no port yet."""
    server = grpc.aio.server(options=options(service.config.max_body_bytes), interceptors=list(interceptors))
    handlers = Servicer(service).handlers()
    server.add_generic_rpc_handlers(handlers)
    names = [handler.service_name() for handler in handlers]
    health_pb2_grpc.add_HealthServicer_to_server(Health(service, names), server)
    reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)
    return server


def options(most_bytes: int) -> list[tuple[str, int]]:
    """Return the options of a gRPC server that takes messages of `most_bytes`."""
    return [
        # A little above our own limit, because its error says more than gRPC's.
        ("grpc.max_receive_message_length", most_bytes + 65536),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
        # An inflated message has no bound: they come as they are, and are refused.
        ("grpc.per_message_decompression", 0),
        # Bytes of a call that nobody reads: probing for the bandwidth would raise them from 64 KiB to 16 MiB.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.max_concurrent_streams", MOST_STREAMS),
        ("grpc.max_allowed_incoming_connections", MOST_CONNECTIONS),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
        ("grpc.max_connection_idle_ms", IDLE_SECONDS * 1000),
        ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
        ("grpc.keepalive_timeout_ms", HANDSHAKE_SECONDS * 1000),
    ]
