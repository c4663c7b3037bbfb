"""Four times as many requests at once as the server takes."""

import asyncio
import time
from collections import Counter

import httpx

from studies.campaign.finding import Finding
from studies.campaign.site import PLACES, Site

CLIENTS = 4 * PLACES
LATE_SECONDS = 60.0
BODY = {"prompt": "Once upon", "min_new_tokens": 64, "max_new_tokens": 64, "temperature": 0}


async def attack(site: Site, seconds: float) -> list[Finding]:
    """Ask from CLIENTS connections without a pause. Each request ends once: with the answer, or a 429."""
    deadline, ends, texts, named = time.monotonic() + seconds, Counter[str](), set(), 0
    async with site.client(LATE_SECONDS) as client:

        async def keep_asking() -> None:
            nonlocal named
            first = True
            while first or time.monotonic() < deadline:
                first = False
                try:
                    response = await client.post("/generate", json=BODY)
                except httpx.HTTPError as error:
                    ends[type(error).__name__] += 1
                    continue
                ends[str(response.status_code)] += 1
                if response.status_code == 200:
                    texts.add(response.json()["choices"][0]["text"])
                elif response.status_code == 429:
                    named += response.headers.get("retry-after", "").isdigit()
                    await asyncio.sleep(0.1)

        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(keep_asking())
    held = set(ends) <= {"200", "429"} and len(texts) == 1 and named == ends["429"]
    counts = ", ".join(f"{count} x {end}" for end, count in sorted(ends.items()))
    figure = f"{CLIENTS} clients: {counts}; {len(texts)} text"
    return [Finding("each request ends with its answer or a 429 with Retry-After", figure, held)]
