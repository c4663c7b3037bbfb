"""What is known of a replica: what it says, when it counts as lost, and when what it kept is forgotten."""

from typing import Any

import pytest

from run_gpt.api.answers import Status
from run_gpt.errors import DeadlineExceeded, RequestError
from run_gpt.gateway import replica as module
from run_gpt.gateway.replica import SILENT_SECONDS, Replica
from run_gpt.link.calling import ConnectionFailed, OtherVersion

LATE, GONE, OTHER = DeadlineExceeded("late"), ConnectionFailed("gone"), OtherVersion("the replica speaks version 7")


class Probed:
    """A replica whose probes have these answers, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 1000.0
        self.replica = Replica("10.0.0.1:5")
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)

    async def probe(self, answer: str | RequestError, started: float | None = None) -> str:
        async def ask(*_: Any, **__: Any) -> bytes:
            if isinstance(answer, RequestError):
                raise answer
            said = {"state": answer, "model": "m", "running": 0, "waiting": 0, "started": started}
            return Status.model_validate(said).model_dump_json().encode()

        self.replica.ask = ask  # type: ignore[method-assign]
        await self.replica.probe()
        return self.replica.state


@pytest.fixture
async def probed(monkeypatch: pytest.MonkeyPatch) -> Probed:
    return Probed(monkeypatch)


async def test_a_busy_replica_answers_late_and_a_silent_one_is_lost(probed: Probed) -> None:
    assert await probed.probe("ready") == "ready"
    probed.now += 3600  # with thousands of replicas it is long to the next probe: that is not its silence
    assert await probed.probe(LATE) == "ready"
    probed.now += SILENT_SECONDS - 1
    assert await probed.probe(LATE) == "ready"
    assert await probed.probe("ready") == "ready"
    probed.now += SILENT_SECONDS + 1
    assert await probed.probe(LATE) == "ready"
    probed.now += SILENT_SECONDS + 1
    assert await probed.probe(LATE) == "lost"


async def test_one_that_is_gone_is_lost_at_once_and_one_never_seen_is_connecting(probed: Probed) -> None:
    assert await probed.probe(GONE) == "connecting"
    assert await probed.probe("ready") == "ready"
    assert await probed.probe(GONE) == "lost"


async def test_what_it_kept_is_forgotten_when_it_was_away(probed: Probed) -> None:
    """A process that was started again has none of the conversations that are sent to it."""
    await probed.probe("ready")
    cache = probed.replica.cache
    for answer, same in (("ready", True), (LATE, True), ("ready", True), (GONE, True), ("ready", False)):
        await probed.probe(answer)  # type: ignore[arg-type]
        assert (probed.replica.cache is cache) is same
    cache = probed.replica.cache
    probed.replica.suspect()
    assert not probed.replica.takes_requests
    await probed.probe("ready")
    assert probed.replica.takes_requests
    assert probed.replica.cache is not cache


async def test_another_process_at_the_same_address_is_a_restart(probed: Probed) -> None:
    """However short its absence was; a connection that breaks is none."""
    for answer, started, restarts in (
        ("ready", 1.0, 0),
        (GONE, None, 0),
        ("ready", 1.0, 0),
        ("ready", 2.0, 1),
        ("draining", 2.0, 1),
        (GONE, None, 1),
        ("ready", 3.0, 2),
    ):
        await probed.probe(answer, started)  # type: ignore[arg-type]
        assert probed.replica.restarts == restarts


async def test_one_of_another_version_gets_no_requests_and_the_log_says_why(
    probed: Probed, caplog: pytest.LogCaptureFixture
) -> None:
    """A rolling update that goes wrong must say so, once, and not fail oddly."""
    for _ in range(2):
        assert await probed.probe(OTHER) == "incompatible"
    assert not probed.replica.takes_requests
    assert [record.getMessage() for record in caplog.records] == [
        "the replica at 10.0.0.1:5 gets no requests: the replica speaks version 7"
    ]
    assert await probed.probe("ready") == "ready"
