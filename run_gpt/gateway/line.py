"""`Line`: the connection of a gateway to one executor, which is replaced when it leads nowhere."""

import asyncio
import os
from typing import Any

import grpc

from run_gpt.config import EXECUTOR_TOKEN_VARIABLE
from run_gpt.gateway.request_span import carried
from run_gpt.link.calling import Exchange, Link
from run_gpt.process import request_ids, tenants
from run_gpt.process.executor_tls import CHANNEL_OPTIONS, executor_tls

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
    # Two gateways in one process must not share a connection: each ends its own.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
]


class Line:
    """Connection to the executor at `address` ("host:port"); with TLS if this process has it (see executor_tls)."""

    def __init__(self, address: str):
        self._address = address
        self._tls = executor_tls()
        self._closing: set[asyncio.Task[None]] = set()
        self._connect()

    def _connect(self) -> None:
        self._channel = self._new_channel()
        self._link = Link(self._channel, os.environ.get(EXECUTOR_TOKEN_VARIABLE) or None)

    def _new_channel(self) -> Any:
        self._shown = None if self._tls is None else self._tls.current()
        if self._tls is None:
            return grpc.aio.insecure_channel(self._address, options=_OPTIONS)
        options = [*_OPTIONS, *CHANNEL_OPTIONS]
        return grpc.aio.secure_channel(self._address, self._tls.channel_credentials(), options=options)

    async def start(self, path: str, body: bytes, request_id: str, arrived: asyncio.Event | None) -> Exchange:
        """Send a request (see Link.start). Raises ConnectionFailed, OtherVersion."""
        name = request_ids.current.get() or request_id
        return await self._link.start(
            path, body, request_id=name, trace=carried(), arrived=arrived, tenant=tenants.current.get()
        )

    def renew(self) -> None:
        """End all calls, each with ConnectionFailed, and connect anew.

        The old connection may lead nowhere, although nothing has closed it.
        """
        closing = asyncio.create_task(_close(self._link, self._channel))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self._connect()

    def renew_certificate(self) -> None:
        """Connect anew if this gateway has another certificate than this connection."""
        if self._tls is not None and self._tls.current() is not self._shown:
            self.renew()

    async def close(self) -> None:
        """End the connection and all requests on it."""
        await asyncio.gather(*self._closing, _close(self._link, self._channel))


async def _close(link: Link, channel: Any) -> None:
    await link.close()
    await channel.close()
