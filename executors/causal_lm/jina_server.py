"""Adds an Executor's own gRPC methods to Jina's server, which has no hook for them.

Jina's server makes its gRPC server from its interceptors in `setup_server`, after it has made the Executor: one more
interceptor answers the methods that the Executor has in `rpc_methods` (path to gRPC handler). This holds in our pods,
in `jina flow` and in `jina executor` alike.
"""

from collections.abc import Mapping
from typing import Any

import grpc
from jina.serve.runtimes.servers.grpc import GRPCServer

_setup_server = GRPCServer.setup_server


async def _setup_server_with_methods(server: Any) -> None:
    executor = getattr(server._request_handler, "_executor", None)
    if methods := getattr(executor, "rpc_methods", None):
        interceptors = server.grpc_tracing_server_interceptors or ()
        server.grpc_tracing_server_interceptors = [_Methods(methods), *interceptors]
    await _setup_server(server)


class _Methods(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    def __init__(self, methods: Mapping[str, Any]):
        self._methods = methods

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """See grpc.aio.ServerInterceptor."""
        return self._methods.get(details.method) or await continuation(details)


def add_rpc_methods() -> None:
    """Let every Executor of this process have methods of its own; calling it again changes nothing."""
    GRPCServer.setup_server = _setup_server_with_methods
