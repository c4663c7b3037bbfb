"""The campaign of studies/campaign in its short form: what the server promises holds under each attack.

`make campaign` runs the long one, with figures; docs/reliability.md has the promises.
"""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if str(Path(__file__).parents[2]) not in sys.path:
    sys.path.append(str(Path(__file__).parents[2]))
from studies.campaign.attack import Attack, find
from studies.campaign.attacks import ATTACKS
from studies.campaign.model import write_byte_model
from studies.campaign.others import ask
from studies.campaign.site import Site, serving

EASE = 5.0
"""Factor on bounds of time: the machine may be slow, and other tests run beside these."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, str]]:
    """Yield a server of two replicas, and its answer to the question of the good clients."""
    folder = tmp_path_factory.mktemp("campaign")

    async def answer(running: Site) -> str:
        async with running.client() as client:
            return await ask(client)

    with serving(str(write_byte_model(folder / "model")), folder, EASE) as running:
        yield running, asyncio.run(answer(running))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
async def test_what_is_promised_holds_under_attack(site: tuple[Site, str], attack: Attack) -> None:
    findings = await find(site[0], attack, site[1], attack.short)
    assert not [f"{finding.promise}: {finding.figure}" for finding in findings if not finding.held]
