"""Jina's two kinds of server, corrected: they open at once, report their true readiness, and end in time."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

from jina.serve.runtimes.servers.grpc import GRPCServer
from jina.serve.runtimes.servers.http import FastAPIBaseServer
from uvicorn import Config, Server

from run_gpt.errors import PortInUse
from run_gpt.gateway import grpc_server
from run_gpt.gateway.connection import Connection
from run_gpt.gateway.discovery import join_address
from run_gpt.gateway.front import front
from run_gpt.gateway.grpc_connections import ConnectionWatch, can_watch
from run_gpt.gateway.grpc_reads import Reads
from run_gpt.gateway.http import build_app
from run_gpt.gateway.http_access import guarded
from run_gpt.gateway.keys import Keys
from run_gpt.gateway.listening import Listener, raise_file_limit
from run_gpt.gateway.open_connections import OpenConnections
from run_gpt.gateway.proxies import Proxies
from run_gpt.gateway.service import Service
from run_gpt.gateway.tls import Certificate

STOP_SECONDS = 5.0
"""Time that answers get to be written after the drain; then they are cut."""


class GatewayGRPCServer(GRPCServer):  # type: ignore[misc]
    """The gRPC server on `self.host`, `self.port`. `reads`: the reads of the interceptor of access."""

    def __init__(
        self,
        service: Service,
        reads: Reads,
        certificate: Certificate | None = None,
        interceptors: Sequence[Any] = (),
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self._certificate = certificate
        self.service = service
        self.interceptors = list(interceptors)
        self._reads = reads
        self._watch: asyncio.Task[None] | None = None

    async def setup_server(self) -> None:
        """Open the port; do not wait for executors."""
        self.server = grpc_server.build_server(self.service, self.interceptors)
        address = join_address(self.host, self.port)
        try:
            if self._certificate is None:
                bound = self.server.add_insecure_port(address)
            else:
                bound = self.server.add_secure_port(address, self._certificate.credentials())
        except RuntimeError:
            bound = 0
        if not bound:
            raise PortInUse(f"port {self.port} on {self.host} cannot be opened: another program may listen there")
        await self.server.start()
        if can_watch():
            self._watch = asyncio.create_task(ConnectionWatch(bound, self._reads, grpc_server.MOST_OF_ADDRESS).run())

    async def shutdown(self) -> None:
        """Close the port and cut the calls that still run. Called after the drain, so none has an answer to come."""
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                while self._reads.writing:  # noqa: ASYNC110  (a client reads slowly)
                    await asyncio.sleep(0.02)
        await self.server.stop(grace=grpc_server.STOP_SECONDS)
        if self._watch is not None:
            self._watch.cancel()
        await self._request_handler.close()
        self._teardown_instrumentation()


class GatewayHTTPServer(FastAPIBaseServer):  # type: ignore[misc]
    """The HTTP server on `self.host`, `self.port`."""

    def __init__(
        self,
        service: Service,
        keys: Keys | None,
        proxies: Proxies,
        certificate: Certificate | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.service = service
        self.keys = keys
        self._proxies = proxies
        self._certificate = certificate

    @property
    def app(self) -> Any:
        """Our app, behind its access checks."""
        service = self.service
        app = guarded(build_app(service), service.config, self.keys, service.count)
        return front(app if service.tracing is None else service.tracing.http(app), self._proxies)

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
            proxy_headers=False,  # see `front`
            **{**self.uvicorn_kwargs, "timeout_keep_alive": self.service.config.keep_alive},
        )
        try:
            listener = _listen(self.host, self.port, config.backlog)
        except OSError as error:
            raise PortInUse(f"port {self.port} on {self.host} cannot be opened: {error.strerror}") from error
        # Accepted connections inherit it; asyncio would set it only on sockets that it opened itself.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = None if self._certificate is None else self._certificate.context
        self.server = _Server(config, listener, self._proxies, context)
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

    def __init__(self, config: Config, listener: socket.socket, proxies: Proxies, tls: ssl.SSLContext | None = None):
        super().__init__(config)
        self._proxies = proxies
        self._listener = listener
        self._tls = tls

    async def open(self) -> None:
        self.config.load()
        self.config.ssl = self._tls
        self.lifespan = self.config.lifespan_class(self.config)
        self.connections = OpenConnections(raise_file_limit(), self._proxies.trusts)

        def connection(accepted: socket.socket) -> Connection:
            return Connection(self.connections, self.config, self.server_state, accepted)

        self.servers = [cast("Any", Listener(self._listener, connection, lambda: self.config.ssl))]

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:  # every second
            self.connections.check(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

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
