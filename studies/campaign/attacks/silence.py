"""Connections without a request: silent ones, half headers, half bodies, drops of a byte."""

import asyncio
import time

from studies.campaign import wire
from studies.campaign.finding import Finding
from studies.campaign.site import Site

DEADLINE_SECONDS = 60.0
"""Time in which a server must have closed a connection that sends no whole request."""
FLOOD = 4300
FLOOD_SHORT = 400
DRIP_SECONDS = 0.5
HALF_BODY = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{"
KINDS = {"silent": b"", "half headers": b"POST /generate HTTP/1.1\r\nhost: x\r\n", "half body": HALF_BODY}


async def attack(site: Site, seconds: float) -> list[Finding]:
    """Flood the port with silent connections; in the whole campaign, wait for the server to close some of each kind."""
    findings = [await _flood(site, seconds)]
    if seconds > DEADLINE_SECONDS:
        kept = {name: [await wire.connect(site, wire.ATTACKER) for _ in range(5)] for name in KINDS}
        times = await asyncio.gather(*(_closed_after(KINDS[name], each) for name, each in kept.items()))
        for name, took in zip(kept, times, strict=True):
            figure = f"open after {DEADLINE_SECONDS:.0f} s" if took is None else f"closed after {took:.0f} s"
            findings.append(Finding(f"a connection does not stay without a request: {name}", figure, took is not None))
    return findings


async def _flood(site: Site, seconds: float) -> Finding:
    """Open many silent connections from one address; the good clients come from another."""
    wanted, refused, opened = FLOOD if seconds > DEADLINE_SECONDS else FLOOD_SHORT, 0, []
    for _ in range(wanted):
        try:
            opened.append(await wire.connect(site, wire.ATTACKER))
        except (OSError, TimeoutError):
            refused += 1
            if refused > 10:
                break
    await asyncio.sleep(1)
    alive = sum(not connection.reader.at_eof() for connection in opened)
    for connection in opened:
        connection.close(reset=True)
    # Others' verdict says if the flood did harm; this one, if it is bounded.
    figure = f"{len(opened)} of {wanted} opened from one address, {alive} kept"
    return Finding("silent connections are bounded", figure, alive < FLOOD)


async def _closed_after(sent: bytes, connections: list[wire.Connection]) -> float | None:
    """Return the seconds after which all connections were closed, although they drip a byte now and then."""
    start = time.monotonic()
    for connection in connections:
        await connection.send(sent)

    async def drip() -> None:
        while sent:
            await asyncio.sleep(DRIP_SECONDS)
            for connection in connections:
                await connection.send(b"x")

    dripping = asyncio.ensure_future(drip())
    closed = await asyncio.gather(*(connection.closed(DEADLINE_SECONDS) for connection in connections))
    dripping.cancel()
    for connection in connections:
        connection.close(reset=True)
    return time.monotonic() - start if all(closed) else None
