"""Good clients beside an attack: each asks the same question again and again, and knows the answer."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from studies.campaign.finding import Finding
from studies.campaign.site import Site

CLIENTS = 2
PAUSE_SECONDS = 0.05
QUESTION = {"prompt": "Once upon a time", "min_new_tokens": 16, "max_new_tokens": 16, "temperature": 0}


@dataclass
class Seen:
    """Outcomes of the good requests."""

    expected: str
    right: int = 0
    slowest: float = 0.0
    """Seconds of the slowest right answer."""
    faults: list[str] = field(default_factory=list)
    """Statuses and errors of the others."""

    def finding(self, allowed: Collection[str], patience: float) -> Finding:
        """Return the verdict. `allowed`: refusals that an attack may cause; `patience`: most seconds of an answer."""
        wrong = [fault for fault in self.faults if fault not in allowed]
        counts = ", ".join(f"{self.faults.count(fault)} x {fault}" for fault in sorted(set(self.faults)))
        asked = self.right + len(self.faults)
        figure = f"{self.right} of {asked} right, slowest {self.slowest:.2f} s" + (f"; {counts}" if counts else "")
        return Finding("others are served", figure, self.right > 0 and not wrong and self.slowest <= patience)


async def ask(client: httpx.AsyncClient) -> str:
    """Return the answer's text, or the status, or the error's name."""
    try:
        response = await client.post("/generate", json=QUESTION)
    except httpx.HTTPError as error:
        return type(error).__name__
    return str(response.json()["choices"][0]["text"]) if response.status_code == 200 else str(response.status_code)


@asynccontextmanager
async def others(site: Site, expected: str) -> AsyncIterator[Seen]:
    """Let CLIENTS ask until the block ends; their last requests are waited for. `expected`: the right answer."""
    over, seen = asyncio.Event(), Seen(expected)
    async with site.client(60.0) as client:

        async def keep_asking() -> None:
            while not over.is_set():
                start = time.monotonic()
                answer = await ask(client)
                if answer == seen.expected:
                    seen.right += 1
                    seen.slowest = max(seen.slowest, time.monotonic() - start)
                else:
                    seen.faults.append(answer if len(answer) < 30 else "another text")
                await asyncio.sleep(PAUSE_SECONDS)

        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(keep_asking())
            try:
                yield seen
            finally:
                over.set()
