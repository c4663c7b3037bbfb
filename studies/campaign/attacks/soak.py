"""Mixed requests, one after the other, and the memory and descriptors that stay."""

import asyncio
import itertools
import time
from typing import Any

import httpx

from studies.campaign.finding import Finding
from studies.campaign.memory import MIB
from studies.campaign.site import Site

AT_ONCE = 6
WARM_SHARE = 0.4
"""Share of the time after which the caches of all processes have their size."""
MOST_GROWTH = 16 * MIB
MOST_FOR_1000 = 0.5 * MIB
FEW_DESCRIPTORS = 16
CHAT = [{"role": "user", "content": "Who are you?"}]
KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/generate", {"prompt": "Once", "max_new_tokens": 8}),
    ("/generate_stream", {"prompt": "Once upon", "max_new_tokens": 16, "temperature": 0.9, "seed": 1}),
    ("/chat", {"messages": CHAT, "max_new_tokens": 8, "logprobs": 3}),
    ("/v1/completions", {"model": "{model}", "prompt": "A long time ago", "max_tokens": 8, "n": 2, "temperature": 1}),
    ("/v1/chat/completions", {"model": "{model}", "messages": CHAT, "max_tokens": 8, "stream": True}),
    ("/tokenize", {"prompt": "once upon a time " * 20}),
    ("/embed", {"texts": ["once", "upon"]}),
    ("/generate", {"prompt": "Once", "max_new_tokens": 8, "response_format": {"type": "regex", "regex": "[a-z]+"}}),
    ("/generate", {"prompt": "Once", "colour": 1}),
)


async def attack(site: Site, seconds: float) -> list[Finding]:
    """Ask for `seconds`; compare what processes hold after WARM_SHARE of it and at its end."""
    counts = [0]
    faults: set[str] = set()
    warm, end = time.monotonic() + WARM_SHARE * seconds, time.monotonic() + seconds
    async with site.client() as client:
        name = (await client.get("/ready")).json()["model"]
        kinds = [(path, {**body, "model": name} if "model" in body else body) for path, body in KINDS]
        mixed = itertools.cycle(kinds)
        await _ask_until(client, mixed, warm, counts, faults)
        had, first = _held(site), counts[0]
        await _ask_until(client, mixed, end, counts, faults)
    has, asked = _held(site), counts[0] - first
    findings = [Finding("mixed requests are answered", f"{counts[0]} requests, faults: {sorted(faults)}", not faults)]
    for role in ("gateway", "executor"):
        grown = has[role][0] - had[role][0]
        files = has[role][1] - had[role][1]
        each = 1000 * grown / max(asked, 1)
        figure = f"{role}: {each / MIB:+.2f} MiB for 1,000 of {asked} requests, {files:+} descriptors"
        held = (grown < MOST_GROWTH or each < MOST_FOR_1000) and files <= FEW_DESCRIPTORS
        findings.append(Finding("memory and descriptors level off", figure, held))
    return findings


async def _ask_until(
    client: httpx.AsyncClient, mixed: Any, deadline: float, counts: list[int], faults: set[str]
) -> None:
    async def keep_asking() -> None:
        while time.monotonic() < deadline:
            path, body = next(mixed)
            response = await client.post(path, json=body)
            counts[0] += 1
            if response.status_code != (400 if "colour" in body else 200):
                faults.add(f"{path} {response.status_code}")

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(keep_asking())


def _held(site: Site) -> dict[str, tuple[int, int]]:
    """Return bytes and descriptors of each role."""
    return {role: (site.memory(role), site.descriptors(role)) for role in ("gateway", "executor")}
