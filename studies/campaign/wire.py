"""Raw HTTP connections and gRPC calls, as no proper client makes them."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from studies.campaign.site import Site

LEGACY = "/jina.JinaRPC/Call"
STREAM = "/jina.JinaSingleDocumentRequestRPC/stream_doc"
UNARY = "/jina.JinaSingleDataRequestRPC/process_single_data"
ATTACKER = "127.0.0.2"
"""Source of connections that stay, so that a limit for each address does not hit the good clients."""


class Connection:
    """A TCP connection to the HTTP port."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        """Send bytes; a server that has closed the connection is no fault."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError:
            return

    async def status(self, seconds: float) -> int | None:
        """Return the status of the next answer; None: closed without one. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            try:
                line = await self.reader.readline()
            except ConnectionError:
                return None
        words = line.split()
        return int(words[1]) if len(words) > 1 and words[1].isdigit() else None

    async def closed(self, seconds: float) -> bool:
        """Return True when the server closes the connection within that time."""
        try:
            async with asyncio.timeout(seconds):
                while await self.reader.read(65536):
                    pass
        except TimeoutError:
            return False
        except ConnectionError:
            pass
        return True

    def close(self, *, reset: bool = False) -> None:
        """Close the connection, or reset it."""
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.writer.transport.abort()
        self.writer.close()


async def connect(site: Site, source: str | None = None, buffer: int | None = None) -> Connection:
    """Open a connection to the HTTP port. `source`: its address; `buffer`: bytes that it takes without being read."""
    sock = socket.socket()
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    if source is not None:
        sock.bind((source, 0))
    sock.setblocking(False)
    try:
        async with asyncio.timeout(10):
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", site.http_port))
    except (OSError, TimeoutError):
        sock.close()
        raise
    return Connection(*await asyncio.open_connection(sock=sock, limit=buffer or 65536))


def post(site: Site, path: str, body: Any, **headers: str) -> bytes:
    """Return the bytes of a POST with the key. `body`: an object for JSON, or bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"host": f"127.0.0.1:{site.http_port}", **site.authorization, "content-length": str(len(content))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + content


@asynccontextmanager
async def channel(site: Site, **options: Any) -> AsyncIterator[Any]:
    """Open a gRPC channel of its own."""
    alone = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1))
    async with grpc.aio.insecure_channel(site.grpc, options=alone, **options) as made:
        yield made


def metadata(site: Site) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a good gRPC call."""
    return tuple(site.authorization.items())


async def code_of(call: Any) -> grpc.StatusCode:
    """Return the status with which a call ends."""
    code: grpc.StatusCode = await call.code()
    return code
