"""The listening socket of the HTTP port: it accepts connections, and waits when the system has no room for more."""

import asyncio
import logging
import resource
import socket
import ssl
from collections.abc import Callable

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 4096
SPARE_FILES = 256
"""Descriptors that are kept for other uses than HTTP connections."""
LEAST_CONNECTIONS = 64
AT_ONCE = 64
"""Most connections that are accepted before others get the event loop."""
MAX_HANDSHAKES = 512
HANDSHAKE_SECONDS = 10.0
WAIT_SECONDS = 1.0
"""Time without new connections after one could not be accepted."""
LOG_SECONDS = 60.0
"""Time between two lines of the log about that."""


def raise_file_limit() -> int:
    """Raise this process's limit of open files as far as it may. Return the number of HTTP connections to allow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * (MAX_CONNECTIONS + SPARE_FILES)  # gRPC's connections are as many
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    files = wanted if soft == resource.RLIM_INFINITY else soft
    return max(LEAST_CONNECTIONS, min(MAX_CONNECTIONS, files // 2 - SPARE_FILES // 2))


class Listener:
    """Acceptor of connections on a listening socket, until it is closed. `protocol` makes each one's protocol.

    asyncio's own writes a traceback for each connection that cannot be accepted, thousands a second.
    """

    def __init__(
        self,
        listening: socket.socket,
        protocol: Callable[[socket.socket], asyncio.Protocol],
        context: Callable[[], ssl.SSLContext | None],
    ):
        self._socket, self._protocol, self._context = listening, protocol, context
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._again: asyncio.TimerHandle | None = None
        self._logged = -LOG_SECONDS
        self._failures = 0
        listening.setblocking(False)
        self._begin()

    def close(self) -> None:
        """Accept no more connections, and close the socket."""
        if self._again is not None:
            self._again.cancel()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _begin(self) -> None:
        self._again = None
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                accepted, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._back_off(error)
                return
            if len(self._tasks) >= MAX_HANDSHAKES:
                accepted.close()
                continue
            accepted.setblocking(False)
            task = self._loop.create_task(self._connect(accepted))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self, accepted: socket.socket) -> None:
        context = self._context()
        timeout = None if context is None else HANDSHAKE_SECONDS
        try:
            await self._loop.connect_accepted_socket(
                lambda: self._protocol(accepted), accepted, ssl=context, ssl_handshake_timeout=timeout
            )
        except OSError:  # the client has gone, or speaks no TLS
            accepted.close()

    def _back_off(self, error: OSError) -> None:
        self._failures += 1
        self._loop.remove_reader(self._socket.fileno())
        self._again = self._loop.call_later(WAIT_SECONDS, self._begin)
        if (now := self._loop.time()) - self._logged >= LOG_SECONDS:
            self._logged = now
            log.warning(
                "no connection can be accepted on the HTTP port: %s (%d times so far); trying again every second",
                error.strerror,
                self._failures,
            )
