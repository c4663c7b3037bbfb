"""SIGSTOP for a replica, under load: a process that lives and does nothing."""

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

from studies.campaign.finding import Finding
from studies.campaign.site import POLL_SECONDS, Site

NOTICED_SECONDS = 3.0
MENDED_SECONDS = 15.0


async def attack(site: Site, seconds: float) -> list[Finding]:
    """Stop a replica, and wait at most `seconds` until it is noticed and until all serve again."""
    victim = min(site.processes("executor"), key=lambda process: process.pid)
    replicas, start = await site.replicas_ready(), time.monotonic()
    victim.send_signal(signal.SIGSTOP)
    try:
        noticed = await _after(site, start, seconds, lambda ready: ready < replicas)
        mended = None if noticed is None else await _after(site, start, seconds, lambda ready: ready == replicas)
    finally:
        await _let_go(site, victim, replicas)
    return [
        Finding("a replica that hangs is noticed", _figure(noticed), _within(noticed, site.ease * NOTICED_SECONDS)),
        Finding("a replica that hangs is mended", _figure(mended), _within(mended, site.ease * MENDED_SECONDS)),
    ]


def _within(took: float | None, seconds: float) -> bool:
    return took is not None and took <= seconds


def _figure(took: float | None) -> str:
    return "not in time" if took is None else f"after {took:.1f} s"


async def _after(site: Site, start: float, seconds: float, is_right: Callable[[int], bool]) -> float | None:
    """Return the seconds since `start` until the number of ready replicas is right; None: not within `seconds`."""
    while time.monotonic() - start < seconds:
        if is_right(await site.replicas_ready()):
            return time.monotonic() - start
        await asyncio.sleep(POLL_SECONDS)
    return None


async def _let_go(site: Site, victim: psutil.Process, replicas: int) -> None:
    """Let the process go on, if it still lives, and wait for all replicas."""
    with suppress(psutil.Error):
        victim.send_signal(signal.SIGCONT)
    await _after(site, time.monotonic(), 60.0, lambda ready: ready == replicas)
