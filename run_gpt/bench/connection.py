"""HTTP/1.1 connections with little overhead: bytes and their times are recorded, and parsed afterwards.

A general HTTP client needs more processor time for each token of a stream than a fast server leaves free. On a small
machine it takes this time from the server.
"""

import asyncio
import time
from typing import cast

import httpx

from run_gpt.bench.response import BadAnswer, Response
from run_gpt.client.endpoint import Endpoint
from run_gpt.client.trust import given_ca, http_trust

_IDLE_SECONDS = 1.0  # a server may close a connection that was idle for longer just as it is reused


class Connection(asyncio.Protocol):
    """One socket, which sends one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._response: Response | None = None
        self._over: asyncio.Future[None] | None = None
        self.idle_since = 0.0

    async def ask(self, request: bytes, response: Response) -> float:
        """Send a request, and return the time at which its answer was complete.

        Raises ConnectionError if the connection ended before that, and BadAnswer.
        """
        if self._transport is None:
            raise ConnectionResetError("the connection is closed")
        self._response, self._over = response, asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            await self._over
        finally:
            self._response = None
        if response.ended is None:
            raise ConnectionResetError("the server closed the connection")
        self.idle_since = response.ended
        return response.ended

    @property
    def is_fresh(self) -> bool:
        """True when the connection was used so recently that the server is unlikely to be closing it."""
        return self._transport is not None and time.perf_counter() - self.idle_since < _IDLE_SECONDS

    def close(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transports have classes of their own

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        at = time.perf_counter()
        if self._response is None or self._over is None:  # data without a request
            return self.close()
        try:
            self._response.feed(at, data)
        except BadAnswer as error:
            self._end(error)
        else:
            if self._response.ended is not None:
                self._end()

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        if self._response is not None:
            self._response.close(time.perf_counter())
        self._end(error)

    def _end(self, error: Exception | None = None) -> None:
        if self._over is None or self._over.done():
            return
        if error is None:
            self._over.set_result(None)
        else:
            self._over.set_exception(error)


class Connections:
    """Pool with one connection to a server for each request in flight; free connections are reused."""

    def __init__(self, endpoint: Endpoint):
        host, _, port = endpoint.address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        trust = http_trust(endpoint.is_secure, given_ca())
        # The same certificates as httpx, which requests the models of this server.
        self._tls = httpx.create_ssl_context(verify=trust, trust_env=False) if trust else None
        self._free: list[Connection] = []

    async def ask(self, request: bytes, response: Response) -> float:
        """Send a request as Connection.ask does. Raises OSError also if no connection can be made."""
        connection = await self._taken()
        try:
            ended = await connection.ask(request, response)
        except BaseException:
            connection.close()
            raise
        if response.reusable:
            self._free.append(connection)
        else:
            connection.close()
        return ended

    async def _taken(self) -> Connection:
        while self._free:
            connection = self._free.pop()
            if connection.is_fresh:
                return connection
            connection.close()
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._host, self._port, ssl=self._tls)
        return connection

    def close(self) -> None:
        """Close all free connections."""
        while self._free:
            self._free.pop().close()
