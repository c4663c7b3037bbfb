"""Requests that are small on the wire and large in memory, and streams that nobody may open."""

import asyncio
import gzip
from collections import Counter
from collections.abc import AsyncIterator

import grpc

from studies.campaign import wire
from studies.campaign.finding import Finding
from studies.campaign.memory import MIB, growth
from studies.campaign.site import Site

INFLATED = 256 * MIB
MESSAGE = 8 * MIB
KEYLESS, KEYLESS_SHORT = 100, 30
MOST_GROWTH = 96 * MIB
ENDLESS = 64
"""MiB of a body that goes on and on."""


async def attack(site: Site, seconds: float) -> list[Finding]:
    """Send a compressed bomb and an endless body over HTTP, and compressed messages without a key over gRPC."""
    async with growth(site, "gateway") as grown:
        statuses = [await _compressed(site), await _endless(site)]
    http = Finding(
        "a compressed or endless body is refused, and costs little memory",
        f"statuses {statuses}, {grown.figure}",
        statuses == [413, 413] and grown.most < MOST_GROWTH,
    )
    return [http, await _keyless(site, KEYLESS if seconds > 10 else KEYLESS_SHORT)]


async def _compressed(site: Site) -> int | None:
    connection = await wire.connect(site)
    await connection.send(wire.post(site, "/generate", gzip.compress(bytes(INFLATED)), content_encoding="gzip"))
    status = await connection.status(20)
    connection.close()
    return status


async def _endless(site: Site) -> int | None:
    """Send ENDLESS MiB in chunks, and return the status; None: a reset."""
    connection = await wire.connect(site)
    head, _, _ = wire.post(site, "/generate", b"").partition(b"content-length")
    await connection.send(head + b"transfer-encoding: chunked\r\n\r\n")
    chunk = b"100000\r\n" + b"x" * MIB + b"\r\n"

    async def send() -> None:
        for _ in range(ENDLESS):
            await connection.send(chunk)

    sending = asyncio.ensure_future(send())
    try:
        return await connection.status(20)
    except TimeoutError:
        return None
    finally:
        sending.cancel()
        connection.close(reset=True)


async def _keyless(site: Site, count: int) -> Finding:
    """Open streams without a key, each with one large compressed message that nobody should read."""
    message = bytes(MESSAGE)

    async def one_message() -> AsyncIterator[bytes]:
        yield message
        await asyncio.sleep(10)

    async with growth(site, "gateway") as grown, wire.channel(site, compression=grpc.Compression.Gzip) as channel:
        calls = [channel.stream_stream(wire.LEGACY)(one_message(), timeout=20) for _ in range(count)]
        codes = Counter([(await wire.code_of(call)).name for call in calls])
    # gRPC's client reports INTERNAL for a stream that is reset while its message is on the way.
    refused = codes.keys() <= {"UNAUTHENTICATED", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL"}
    figure = f"{', '.join(f'{number} x {code}' for code, number in codes.items())}, {grown.figure}"
    promise = "without a key a gRPC stream costs no memory"
    return Finding(promise, figure, refused and grown.most < MOST_GROWTH)
