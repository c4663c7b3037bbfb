"""The most memory that a role's processes take while a block runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from studies.campaign.site import POLL_SECONDS, Site

MIB = 2**20


class Growth:
    """Memory added since the block began."""

    def __init__(self, site: Site, role: str):
        self._site, self._role = site, role
        self._before = site.memory(role)
        self.most = 0
        """Bytes."""

    def look(self) -> int:
        """Note and return the bytes that are added now."""
        now = self._site.memory(self._role) - self._before
        self.most = max(self.most, now)
        return now

    @property
    def figure(self) -> str:
        """Return the most growth as a phrase."""
        return f"{self._role} {self.most / MIB:+.0f} MiB"


@asynccontextmanager
async def growth(site: Site, role: str) -> AsyncIterator[Growth]:
    """Watch the memory of a role's processes until the block ends."""
    watched = Growth(site, role)

    async def keep_looking() -> None:
        while True:
            watched.look()
            await asyncio.sleep(POLL_SECONDS)

    looking = asyncio.ensure_future(keep_looking())
    try:
        yield watched
        watched.look()
    finally:
        looking.cancel()
