"""Clients that go, in eleven ways."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

from run_gpt.api.schema import GenerateRequest
from run_gpt.client import wire as messages
from studies.campaign import wire
from studies.campaign.finding import Finding
from studies.campaign.site import Site

AT_ONCE = 8
MOST = 1000
LONG: dict[str, Any] = {"prompt": "Once", "min_new_tokens": 2000, "max_new_tokens": 2000}


async def _after_bytes(site: Site, path: str, share: float, *, reset: bool = False, half: bool = False) -> None:
    """Send this share of a request, then go: by a reset, or half-closed first."""
    connection = await wire.connect(site)
    request = wire.post(site, path, LONG)
    await connection.send(request[: round(share * len(request))])
    if half:
        connection.writer.write_eof()
    await asyncio.sleep(0.01)
    connection.close(reset=reset)


async def _after_lines(site: Site, count: int, *, reset: bool) -> None:
    """Read so many lines of a stream's answer, then go."""
    connection = await wire.connect(site)
    await connection.send(wire.post(site, "/generate_stream", LONG))
    async with asyncio.timeout(30):
        for _ in range(count):
            await connection.reader.readline()
    connection.close(reset=reset)


async def _grpc_unary(site: Site) -> None:
    message = messages.unary_message("/generate", GenerateRequest(**LONG)).SerializeToString()
    async with wire.channel(site) as channel:
        call = channel.unary_unary(wire.UNARY)(message, metadata=wire.metadata(site))
        await asyncio.sleep(0.02)
        call.cancel()


async def _grpc_stream(site: Site) -> None:
    message = messages.stream_message("/generate_stream", GenerateRequest(**LONG)).SerializeToString()
    async with wire.channel(site) as channel:
        sent = (*wire.metadata(site), ("endpoint", "/generate_stream"))
        call = channel.unary_stream(wire.STREAM)(message, metadata=sent, timeout=30)
        await call.read()


WAYS: dict[str, Callable[[Site], Awaitable[None]]] = {
    "before the first byte": lambda site: _after_bytes(site, "/generate", 0.0),
    "within the headers": lambda site: _after_bytes(site, "/generate", 0.4),
    "within the body": lambda site: _after_bytes(site, "/generate", 0.9),
    "within the body, by a reset": lambda site: _after_bytes(site, "/generate", 0.9, reset=True),
    "after the request": lambda site: _after_bytes(site, "/generate", 1.0),
    "after the request, by a reset": lambda site: _after_bytes(site, "/generate", 1.0, reset=True),
    "after the request, half-closed first": lambda site: _after_bytes(site, "/generate", 1.0, half=True),
    "after the head of a stream": lambda site: _after_lines(site, 1, reset=False),
    "after the first events, by a reset": lambda site: _after_lines(site, 12, reset=True),
    "gRPC: a cancelled call": _grpc_unary,
    "gRPC: a channel closed in a stream": _grpc_stream,
}


async def attack(site: Site, seconds: float) -> list[Finding]:
    """Go in each way in turn, until the time is up."""
    deadline, kinds, done, stuck = time.monotonic() + seconds, itertools.cycle(WAYS.items()), 0, set()

    async def keep_going() -> None:
        nonlocal done
        while done < MOST and (done < len(WAYS) or time.monotonic() < deadline):
            done += 1
            name, way = next(kinds)
            try:
                await way(site)
            except TimeoutError:
                stuck.add(name)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(keep_going())
    figure = f"{done} disconnects in {len(WAYS)} ways" + (f"; no answer: {', '.join(sorted(stuck))}" if stuck else "")
    return [Finding("a client may go at any time", figure, not stuck)]
