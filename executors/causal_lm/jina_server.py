"""Adds an Executor's own gRPC methods to Jina's server, which has no hook for them, and refuses calls of others.

Jina's server makes its gRPC server from its interceptors in `setup_server`, after it has made the Executor: one more
interceptor, before all others, sees each call before its first message is read. It answers the methods that the
Executor has in `rpc_methods` (path to gRPC handler). With $RUNGPT_EXECUTOR_TLS the port takes clients with a
certificate only. This holds in our pods, in `jina flow` and in `jina executor`.
"""

import hmac
import logging
import os
from collections.abc import Mapping
from typing import Any

import grpc
from jina.serve.runtimes.servers import grpc as jina_grpc
from jina.serve.runtimes.servers.grpc import GRPCServer

from run_gpt.config import EXECUTOR_TOKEN_VARIABLE
from run_gpt.link.frames import TOKEN
from run_gpt.process.executor_tls import ExecutorTLS, executor_tls

log = logging.getLogger(__name__)

HEALTH = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch")
"""Methods that need no token: engines of containers ask for health."""
JINAS = (
    "/jina.JinaRPC/Call",
    "/jina.JinaSingleDataRequestRPC/process_single_data",
    "/jina.JinaDataRequestRPC/process_data",
    "/jina.JinaSingleDocumentRequestRPC/stream_doc",
    "/jina.JinaDiscoverEndpointsRPC/endpoint_discovery",
    "/jina.JinaInfoRPC/_status",
)
"""Jina's methods of an Executor; those that make and restore snapshots write and read any path."""
REFLECTION = (
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
)
"""Methods by which Jina's own gateway finds the others; off where a token says that the gateway is ours."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")

_setup_server = GRPCServer.setup_server


async def _setup_server_with_methods(server: Any) -> None:
    executor = getattr(server._request_handler, "_executor", None)
    if methods := getattr(executor, "rpc_methods", None):
        token = os.environ.get(EXECUTOR_TOKEN_VARIABLE) or None
        if token is None and server.host not in _LOOPBACK:
            log.warning("whoever reaches port %s can use the model: set $%s", server.port, EXECUTOR_TOKEN_VARIABLE)
        interceptors = server.grpc_tracing_server_interceptors or ()
        server.grpc_tracing_server_interceptors = [Calls(methods, token), *interceptors]
        if (tls := executor_tls()) is not None:
            server.ssl_keyfile, server.ssl_certfile = tls.files
            jina_grpc.grpc = _ClientsWithCertificates(tls)
    await _setup_server(server)


class _ClientsWithCertificates:
    """The module grpc for Jina's server, which asks for certificates of servers only."""

    def __init__(self, tls: ExecutorTLS):
        self._tls = tls

    def __getattr__(self, name: str) -> Any:
        return getattr(grpc, name)

    def ssl_server_credentials(self, pairs: Any) -> Any:
        """Return credentials that ask for a client's certificate, too."""
        return self._tls.server_credentials()


class Calls(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Interceptor that takes the calls of an Executor and no others, and only with `token` if there is one."""

    def __init__(self, methods: Mapping[str, Any], token: str | None):
        self._methods = methods
        self._token = None if token is None else token.encode()
        self._jinas = {*HEALTH, *JINAS, *(() if token else REFLECTION)}

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """See grpc.aio.ServerInterceptor."""
        if details.method not in HEALTH and not self._admits(details.invocation_metadata or ()):
            return _refusal(grpc.StatusCode.UNAUTHENTICATED, "an executor is called by its gateway only")
        if (own := self._methods.get(details.method)) is not None:
            return own
        if details.method in self._jinas:
            return await continuation(details)
        return _refusal(grpc.StatusCode.UNIMPLEMENTED, f"an executor has no method {details.method}")

    def _admits(self, metadata: Any) -> bool:
        if self._token is None:
            return True
        given = next((value for name, value in metadata if name == TOKEN), "")
        return hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._token)


def _refusal(code: grpc.StatusCode, why: str) -> Any:
    """Return a handler that refuses a call of any kind, without reading it."""

    async def refuse(_: Any, context: Any) -> None:
        await context.abort(code, why)

    return grpc.stream_stream_rpc_method_handler(refuse)


def add_rpc_methods() -> None:
    """Let every Executor of this process have methods of its own; calling it again changes nothing."""
    GRPCServer.setup_server = _setup_server_with_methods
