"""SIGKILL for one replica after the other, under load."""

import asyncio
import signal
import time
from collections import Counter

import httpx

from studies.campaign.finding import Finding
from studies.campaign.site import POLL_SECONDS, Site

CLIENTS = 8
MOST_KILLS = 5
MEND_SECONDS = 60.0
BODY = {"prompt": "Once upon a time", "min_new_tokens": 200, "max_new_tokens": 200, "temperature": 0}


async def attack(site: Site, seconds: float) -> list[Finding]:
    """Kill a replica, wait until it is back, and go on until the time is up: every whole request is answered."""
    deadline, over, ends, texts = time.monotonic() + seconds, asyncio.Event(), Counter[str](), set()
    mended: list[float | None] = []
    async with site.client(90.0) as client:

        async def keep_asking() -> None:
            while not over.is_set():
                try:
                    response = await client.post("/generate", json=BODY)
                except httpx.HTTPError as error:
                    ends[type(error).__name__] += 1
                    continue
                ends[str(response.status_code)] += 1
                if response.status_code == 200:
                    texts.add(response.json()["choices"][0]["text"])

        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(keep_asking())
            try:
                await asyncio.sleep(0.3)
                while not mended or (len(mended) < MOST_KILLS and time.monotonic() < deadline):
                    mended.append(await _kill(site, len(mended)))
            finally:
                over.set()
    counts = ", ".join(f"{count} x {end}" for end, count in sorted(ends.items()))
    return [
        Finding("a killed replica loses no whole request", counts, set(ends) == {"200"} and len(texts) == 1),
        Finding("a killed replica comes back", _times(mended), None not in mended),
    ]


async def _kill(site: Site, number: int) -> float | None:
    """Kill a replica, and return the seconds until all serve again; None: not within MEND_SECONDS."""
    workers = sorted(site.processes("executor"), key=lambda process: process.pid)
    victim = workers[number % len(workers)]
    victim.send_signal(signal.SIGKILL)
    start = time.monotonic()
    while time.monotonic() - start < MEND_SECONDS:
        gone = victim.pid not in [process.pid for process in site.processes("executor")]
        if gone and len(site.processes("executor")) == len(workers) and await site.replicas_ready() == len(workers):
            return time.monotonic() - start
        await asyncio.sleep(POLL_SECONDS)
    return None


def _times(mended: list[float | None]) -> str:
    times = ", ".join("never" if took is None else f"{took:.1f}" for took in mended)
    return f"{len(mended)} kills, ready again after {times} s"
