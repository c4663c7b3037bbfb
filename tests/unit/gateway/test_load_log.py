"""Without these tests an autoscaler that reads a gateway's log could have no data, or scale up without end."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from run_gpt.config import GatewayConfig
from run_gpt.gateway.load import LoadLog, load_of
from run_gpt.gateway.replica import PREPARED
from run_gpt.gateway.service import Service


def service(states: list[str], in_flight: int = 0, log_load: float | None = None) -> Service:
    """Return a service whose replicas have these states, as its pool knows them."""
    replicas = [SimpleNamespace(state=state, takes_requests=state in PREPARED) for state in states]
    pool: Any = SimpleNamespace(replicas=replicas, ready=[one for one in replicas if one.state == "ready"])
    made = Service([cast("Any", pool)], GatewayConfig(log_load=log_load))
    made.in_flight = in_flight
    return made


@pytest.mark.parametrize(
    ("states", "in_flight", "expected"),
    [
        (["ready", "ready"], 5, {"ready": 2, "loading": 0, "in_flight_per_replica": 2.5}),
        (["ready", "connecting"], 5, {"ready": 1, "loading": 1, "in_flight_per_replica": 2.5}),
        (["ready", "draining", "lost", "dead"], 5, {"ready": 1, "loading": 0, "in_flight_per_replica": 5.0}),
        (["ready", "silent", "stuck"], 5, {"ready": 1, "loading": 0, "in_flight_per_replica": 5.0}),
        ([], 0, {"ready": 0, "loading": 0, "in_flight_per_replica": 0.0}),
    ],
)
def test_a_line_says_the_share_of_each_replica_that_takes_or_will_take_requests(
    states: list[str], in_flight: int, expected: dict[str, Any]
) -> None:
    assert load_of(service(states, in_flight)) == {"event": "load", "in_flight": in_flight} | expected


async def test_lines_are_written_until_the_gateway_ends(capsys: pytest.CaptureFixture[str]) -> None:
    log = LoadLog(service(["ready"], log_load=0.001))
    log.start()
    lines: list[str] = []
    async with asyncio.timeout(10):
        while len(lines) < 3:
            await asyncio.sleep(0)
            lines += capsys.readouterr().out.splitlines()
    await log.close()
    assert all(json.loads(line)["event"] == "load" for line in lines)
    capsys.readouterr()
    await asyncio.sleep(0.01)
    assert capsys.readouterr().out == ""


async def test_no_line_unless_it_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    log = LoadLog(service(["ready"]))
    log.start()
    await log.close()
    assert capsys.readouterr().out == ""
