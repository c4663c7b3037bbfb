"""The campaign of studies/campaign in its short form: what the server promises holds under each attack.

`make campaign` runs the long one, with figures; docs/reliability.md has the promises.
"""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if str(Path(__file__).parents[2]) not in sys.path:
    sys.path.append(str(Path(__file__).parents[2]))
from studies.campaign.attack import Attack, find
from studies.campaign.attacks import ATTACKS
from studies.campaign.model import write_byte_model
from studies.campaign.others import ask
from studies.campaign.site import Site, serving

NOT_YET = {
    "slow readers": "log-probabilities hold the executor's loop",
    "junk": "headers have no bound, and junk to gRPC health and reflection is UNKNOWN",
    "extreme values": "some values are a 500",
    "monopolies": "large requests hold the event loops",
    "bombs": "a gRPC message is read before its key is checked",
    "silence": "connections have no bound",
    "hangs": "a replica that hangs is not mended",
}
"""Attacks under which a promise does not hold yet, and the reason."""

EASE = 5.0
"""Factor on bounds of time: the machine may be slow, and other tests run beside these."""


def case(attack: Attack) -> Any:
    why = NOT_YET.get(attack.name)
    return pytest.param(attack, id=attack.name, marks=[pytest.mark.xfail(reason=why, strict=False)] if why else [])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, str]]:
    """Yield a server of two replicas, and its answer to the question of the good clients."""
    folder = tmp_path_factory.mktemp("campaign")

    async def answer(running: Site) -> str:
        async with running.client() as client:
            return await ask(client)

    with serving(str(write_byte_model(folder / "model")), folder, EASE) as running:
        yield running, asyncio.run(answer(running))


@pytest.mark.parametrize("attack", list(map(case, ATTACKS)))
async def test_what_is_promised_holds_under_attack(site: tuple[Site, str], attack: Attack) -> None:
    findings = await find(site[0], attack, site[1], attack.short)
    assert not [f"{finding.promise}: {finding.figure}" for finding in findings if not finding.held]
