"""An attack, its run beside good clients, and the verdict on the traces that it leaves."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from studies.campaign.finding import Finding
from studies.campaign.others import others
from studies.campaign.site import POLL_SECONDS, Site

SETTLE_SECONDS = 20.0
FEW_DESCRIPTORS = 24
"""Number of files that the good clients' connections and pools may keep open; a leak adds one for each request."""
SPARE_SECONDS = 60.0
"""Time that an attack gets beyond its own, before it counts as hung."""
Run = Callable[[Site, float], Awaitable[list[Finding]]]


@dataclass(frozen=True)
class Attack:
    """An attack of a file of `attacks/`: it lasts about so many seconds, and returns its findings."""

    name: str
    run: Run
    seconds: float
    """Length in the whole campaign."""
    short: float = 1.5
    """Length in the form of `make test`."""
    allowed: frozenset[str] = frozenset()
    """Refusals that other clients may get meanwhile."""
    patience: float = 3.0
    """Most seconds of an answer to another client."""


async def find(site: Site, attack: Attack, expected: str, seconds: float) -> list[Finding]:
    """Run an attack beside good clients, and return its findings, theirs, and those of the time after it."""
    before = site.descriptors("gateway")
    async with others(site, expected) as seen:
        try:
            async with asyncio.timeout(seconds + SPARE_SECONDS):
                findings = await attack.run(site, seconds)
        except Exception as error:  # one attack that cannot go on must not end the campaign
            findings = [Finding("the attack runs to its end", f"{type(error).__name__}: {error}"[:200], False)]
    return [*findings, seen.finding(attack.allowed, site.ease * attack.patience), await _settled(site, before)]


async def _settled(site: Site, before: int) -> Finding:
    """Return the verdict on requests, slots and descriptors: all are back soon."""
    start = time.monotonic()
    while True:
        added = site.descriptors("gateway") - before
        took = time.monotonic() - start
        if added <= FEW_DESCRIPTORS and await site.is_idle():
            return Finding("nothing is left behind", f"idle after {took:.1f} s, {added:+} descriptors", True)
        if took > SETTLE_SECONDS:
            return Finding("nothing is left behind", f"busy after {took:.0f} s, {added:+} descriptors", False)
        await asyncio.sleep(POLL_SECONDS)
