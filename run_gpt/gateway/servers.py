"""Jina's two kinds of server, corrected: they open at once, report their true readiness, and end in time."""

import asyncio
import logging
import socket
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]
from jina.serve.runtimes.servers.grpc import GRPCServer
from jina.serve.runtimes.servers.http import FastAPIBaseServer
from uvicorn import Config, Server

from run_gpt.errors import PortInUse
from run_gpt.gateway.discovery import join_address
from run_gpt.gateway.http import build_app
from run_gpt.gateway.http_access import guarded
from run_gpt.gateway.keys import Keys
from run_gpt.gateway.rpc import Servicer
from run_gpt.gateway.service import Service

HEALTH_SECONDS = 0.2
STOP_SECONDS = 5.0
"""Time that connections get to end after the drain; then they are cut."""


class GatewayGRPCServer(GRPCServer):  # type: ignore[misc]
    """The gRPC server on `self.host`, `self.port`."""

    def __init__(self, service: Service, interceptors: Sequence[Any] = (), **kwargs: Any):
        super().__init__(**kwargs)
        self.service = service
        self.interceptors = list(interceptors)
        self._health: asyncio.Task[None] | None = None

    async def setup_server(self) -> None:
        """Open the port; do not wait for executors."""
        limit = self.service.config.max_body_bytes
        options = [
            # A little above our own limit, because its error says more than gRPC's.
            ("grpc.max_receive_message_length", 2 * limit + 65536),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ]
        self.server = grpc.aio.server(options=options, interceptors=self.interceptors)
        handlers = Servicer(self.service).handlers()
        self.server.add_generic_rpc_handlers(handlers)
        health_pb2_grpc.add_HealthServicer_to_server(self.health_servicer, self.server)
        names = [handler.service_name() for handler in handlers]
        reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), self.server)
        try:
            bound = self.server.add_insecure_port(join_address(self.host, self.port))
        except RuntimeError:
            bound = 0
        if not bound:
            raise PortInUse(f"port {self.port} on {self.host} cannot be opened: another program may listen there")
        await self._tell_health(("", *names))
        await self.server.start()
        self._health = asyncio.create_task(self._keep_health(("", *names)))

    async def _keep_health(self, names: Sequence[str]) -> None:
        while True:
            await asyncio.sleep(HEALTH_SECONDS)
            await self._tell_health(names)

    async def _tell_health(self, names: Sequence[str]) -> None:
        """Update gRPC's health service: it says SERVING only while a request would be served."""
        states = health_pb2.HealthCheckResponse
        state = states.SERVING if self.service.ready else states.NOT_SERVING
        for name in names:
            await self.health_servicer.set(name, state)

    async def shutdown(self) -> None:
        """Cut the calls that still run and close the port. Called after the drain."""
        if self._health is not None:
            self._health.cancel()
        await self.health_servicer.enter_graceful_shutdown()
        await self.server.stop(grace=STOP_SECONDS)
        await self._request_handler.close()
        self._teardown_instrumentation()


class GatewayHTTPServer(FastAPIBaseServer):  # type: ignore[misc]
    """The HTTP server on `self.host`, `self.port`."""

    def __init__(self, service: Service, keys: Keys | None, **kwargs: Any):
        super().__init__(**kwargs)
        self.service = service
        self.keys = keys

    @property
    def app(self) -> Any:
        """Our app, behind its access checks."""
        service = self.service
        app = guarded(build_app(service), service.config, self.keys, service.count)
        return app if service.tracing is None else service.tracing.http(app)

    async def setup_server(self) -> None:
        """Open the port; do not wait for executors."""
        config = Config(
            app=self.app,
            http="httptools",
            log_config=None,  # its lines are logged like all others
            log_level=logging.WARNING,
            access_log=False,
            lifespan="off",
            ws="none",
            **self.uvicorn_kwargs,
        )
        try:
            listener = _listen(self.host, self.port, config.backlog)
        except OSError as error:
            raise PortInUse(f"port {self.port} on {self.host} cannot be opened: {error.strerror}") from error
        # Accepted connections inherit it; asyncio would set it only on sockets that it opened itself.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server = _Server(config, listener)
        await self.server.open()

    async def run_server(self) -> None:
        """Serve until shutdown."""
        await self.server.main_loop()

    async def shutdown(self) -> None:
        """Give running requests STOP_SECONDS to end, then close the port. Called after the drain."""
        await self.server.end(STOP_SECONDS)
        self._teardown_instrumentation()


def _listen(host: str, port: int, backlog: int) -> socket.socket:
    """Return a listening socket; `::` is every address of both families, as it is for gRPC."""
    if ":" not in host:
        return socket.create_server((host, port), backlog=backlog)
    both = host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server((host, port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=both)


class _Server(Server):
    """uvicorn's server in parts, without its signal handlers.

    Its own shutdown waits for idle connections for ever on Python 3.12.
    """

    def __init__(self, config: Config, listener: socket.socket):
        super().__init__(config)
        self._listener = listener

    async def open(self) -> None:
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        await self.startup(sockets=[self._listener])

    async def end(self, seconds: float) -> None:
        self.should_exit = True
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(seconds):
                await self._connections_closed()
        except TimeoutError:
            for task in self.server_state.tasks:
                task.cancel()

    async def _connections_closed(self) -> None:
        while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110  (uvicorn has no event for it)
            await asyncio.sleep(0.02)
