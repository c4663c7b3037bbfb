"""The known state of a replica: its own report, when it counts as lost, and when its cache counts as lost."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from run_gpt.api.answers import Status
from run_gpt.errors import DeadlineExceeded, InternalError, RequestError, Unavailable
from run_gpt.gateway import replica as module
from run_gpt.gateway.replica import LATE_PROBES, Replica
from run_gpt.link.calling import ConnectionFailed, Exchange, OtherVersion
from run_gpt.link.frames import METHOD, Start
from run_gpt.link.serving import LinkServer, Reply

LATE, GONE, OTHER = DeadlineExceeded("late"), ConnectionFailed("gone"), OtherVersion("the replica has version 7")


class Probed:
    """A replica whose probes have these answers, and a clock."""

    def __init__(self, replica: Replica, monkeypatch: pytest.MonkeyPatch):
        self.now = 1000.0
        self.replica = replica
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


New = Callable[[], Replica]


@pytest.fixture
async def new() -> AsyncIterator[New]:
    """Yield a maker of replicas, whose channels are closed at the end."""
    made: list[Replica] = []

    def make() -> Replica:
        made.append(Replica("10.0.0.1:5"))
        return made[-1]

    yield make
    for replica in made:
        await replica.close()


@pytest.fixture
async def probed(new: New, monkeypatch: pytest.MonkeyPatch) -> Probed:
    return Probed(new(), monkeypatch)


async def test_a_busy_replica_answers_late_and_a_silent_one_is_lost(probed: Probed) -> None:
    """A short silence shows at once; only a long one ends the requests there. Pauses of the gateway are no silence."""
    assert await probed.probe("ready") == "ready"
    cache = probed.replica.cache
    for _ in range(3):
        for _ in range(LATE_PROBES - 1):
            probed.now += 3600  # with thousands of replicas, or after a suspended machine, the next probe comes late
            assert await probed.probe(LATE) == "silent"
            assert probed.replica.takes_requests, "it gets them if there is no other"
        assert await probed.probe("ready") == "ready"
    assert probed.replica.cache is cache
    for _ in range(LATE_PROBES):
        await probed.probe(LATE)
    assert probed.replica.state == "lost"


@pytest.mark.parametrize("state", ["unloaded", "loading", "draining"])
async def test_one_that_has_no_requests_is_not_silent(probed: Probed, state: str) -> None:
    await probed.probe(state)
    assert await probed.probe(LATE) == state
    for _ in range(LATE_PROBES):
        await probed.probe(LATE)
    assert probed.replica.state == ("loading" if state == "loading" else "lost"), "imports may hold a loading process"


async def test_one_whose_engine_is_stuck_is_prepared_when_it_goes_on(new: New) -> None:
    replica = new()
    await hear(replica, said("stuck", 1))
    assert not replica.takes_requests, "this gateway has not prepared it"
    await hear(replica, said("ready", 2))
    cache = replica.cache
    await hear(replica, said("stuck", 4), said("ready", 3))
    assert (replica.state, replica.takes_requests) == ("stuck", True)
    await hear(replica, said("ready", 5))
    assert (replica.state, replica.cache) == ("ready", cache)


async def test_a_request_on_a_connection_to_a_lost_replica_ends_once(new: New, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests to a stopped process waited until it went on. Its answer may still come, and is read by nobody."""
    go, asked = asyncio.Event(), 0

    async def handle(start: Start, reply: Reply) -> None:
        nonlocal asked
        asked += 1
        await go.wait()
        reply.put(said("ready"))

    async with an_executor(handle) as address:
        replica = Replica(address)
        go.set()
        await replica.probe()
        go.clear()
        arrived = asyncio.Event()
        exchange = await replica.start("/generate", request_id="r", arrived=arrived)
        ends: list[object] = []
        exchange.ended.add_done_callback(ends.append)
        monkeypatch.setattr(module, "PROBE_TIMEOUT", 0.05)
        while replica.state != "lost":
            await replica.probe()
        async with asyncio.timeout(10):
            await asyncio.wait((exchange.ended,))
        assert isinstance(exchange.error, ConnectionFailed)
        go.set()
        async with asyncio.timeout(10):
            while replica.state != "ready":
                await replica.probe()
        assert (len(ends), exchange.take()) == (1, [])
        await replica.close()


@asynccontextmanager
async def an_executor(handle: Any) -> AsyncIterator[str]:
    """Serve the inner wire; yield the address."""
    server = grpc.aio.server()
    service, method = METHOD.strip("/").split("/")
    handlers = {method: LinkServer(handle).handler}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def test_one_that_is_gone_is_lost_at_once_and_one_never_seen_is_connecting(probed: Probed) -> None:
    assert await probed.probe(GONE) == "connecting"
    assert await probed.probe("ready") == "ready"
    assert await probed.probe(GONE) == "lost"


async def test_what_it_kept_is_forgotten_when_it_was_away(probed: Probed) -> None:
    """A restarted process has none of the earlier conversations in its cache."""
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
    """Even a short absence counts if the process is new; a broken connection alone does not."""
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
    """A failed rolling update must log a clear error, once."""
    for _ in range(2):
        assert await probed.probe(OTHER) == "incompatible"
    assert not probed.replica.takes_requests
    assert [record.getMessage() for record in caplog.records] == [
        "the replica at 10.0.0.1:5 gets no requests: the replica has version 7"
    ]
    assert await probed.probe("ready") == "ready"


class Answering:
    """A replica whose executor answers each request with these bodies, and then with an end, or without one."""

    def __init__(self, replica: Replica, *bodies: bytes, end: RequestError | str | None = None):
        self.forgotten = 0
        self.replica = replica
        self.replica.start = self._start  # type: ignore[method-assign,assignment]
        self._bodies, self._end = bodies, end

    async def _start(self, *_: Any, arrived: asyncio.Event, **__: Any) -> Exchange:
        exchange = Exchange(arrived, self._forget)
        for body in self._bodies:
            exchange.put(body)
        if not isinstance(self._end, str):
            asyncio.get_running_loop().call_soon(exchange.end, self._end)
        return exchange

    def _forget(self) -> None:
        self.forgotten += 1


def said(state: str, number: int | None = None, started: float | None = None) -> bytes:
    status = {"state": state, "model": "m", "running": 0, "waiting": 0, "number": number, "started": started}
    return Status.model_validate(status).model_dump_json().encode()


async def test_a_question_has_one_answer_or_an_error_in_time(new: New) -> None:
    """A probe, a scrape or a change of adapters must not hang on a replica."""
    assert await Answering(new(), b"{}").replica.ask("/x", timeout=5) == b"{}"
    with pytest.raises(InternalError, match="no answer to /x"):
        await Answering(new()).replica.ask("/x", timeout=5)
    with pytest.raises(Unavailable, match="draining"):
        await Answering(new(), end=Unavailable("it is draining")).replica.ask("/x", timeout=5)
    silent = Answering(new(), end="never")
    with pytest.raises(DeadlineExceeded):
        await silent.replica.ask("/x", timeout=0.01)
    assert silent.forgotten == 1, "the executor must not go on with it"


async def test_a_question_waits_for_no_connection_longer_than_it_may(new: New) -> None:
    replica = new()

    async def start(*_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()

    replica.start = start  # type: ignore[method-assign]
    with pytest.raises(DeadlineExceeded, match=r"no connection after 0\.01 s"):
        await replica.ask("/x", timeout=0.01)


@pytest.mark.parametrize("body", [b"", b"[1", b"{}", b'{"state": "odd"}'])
async def test_one_that_says_something_else_than_its_state_is_lost(new: New, body: bytes) -> None:
    """The body comes from another program that listens there now."""
    answering = Answering(new(), body)
    answering.replica.state = "ready"
    await answering.replica.probe()
    assert answering.replica.state == "lost"
    assert await answering.replica.state_now() == "lost"


async def test_each_state_of_a_load_is_heard_and_its_failure_raised(new: New) -> None:
    replica = Answering(new(), said("loading"), said("ready")).replica
    await replica.load()
    assert (replica.state, replica.model) == ("ready", "m")
    failing = Answering(new(), said("loading"), end=Unavailable("no memory")).replica
    with pytest.raises(Unavailable, match="no memory"):
        await failing.load()
    assert failing.state == "loading"


async def hear(replica: Replica, *words: bytes) -> None:
    """Let statuses arrive in this order."""
    for word in words:
        await replica._heard(Status.model_validate_json(word))


@pytest.mark.parametrize("late", ["loading", "unloaded", "ready"])
async def test_an_older_status_that_arrives_late_changes_nothing(new: New, late: str) -> None:
    """Otherwise a request for a model that has just been loaded gets a 503, or one for an unloaded model is sent."""
    for newest in ("ready", "unloaded", "loading", "draining"):
        replica = new()
        await hear(replica, said(newest, 7), said(late, 6))
        assert (replica.state, replica.status and replica.status.number) == (newest, 7)


async def test_any_order_of_arrival_ends_with_the_newest_status(new: New) -> None:
    states = ["ready", "unloaded", "loading", "ready"]
    for order in itertools.permutations(range(4)):
        replica = new()
        await hear(replica, *(said(states[number], number) for number in order))
        assert replica.state == "ready"


async def test_a_new_process_counts_anew_and_one_without_numbers_is_believed(new: New) -> None:
    replica = new()
    await hear(replica, said("ready", 900, started=2.0), said("draining", 1, started=1.0))
    assert (replica.state, replica.restarts) == ("draining", 1), "clocks may be set back"
    await hear(replica, said("ready", started=1.0))
    assert replica.state == "ready"


class Preparing:
    """A replica whose preparations end when the test says so."""

    def __init__(self) -> None:
        self.replica = Replica("10.0.0.1:5", self.prepare)
        self.may_end, self.begun = asyncio.Event(), 0

    async def prepare(self, replica: Replica) -> None:
        self.begun += 1
        await self.may_end.wait()

    async def hearing(self, word: bytes) -> "asyncio.Task[None]":
        """Return a task that takes a status in; it has begun."""
        task = asyncio.create_task(hear(self.replica, word))
        await asyncio.sleep(0)
        return task


@pytest.mark.parametrize("absence", ["unloaded", "lost", "another process"])
async def test_a_preparation_is_void_after_an_absence_meanwhile(absence: str) -> None:
    """A replica without the changed adapters, or without a model, must not count as ready."""
    them = Preparing()
    first = await them.hearing(said("ready", 1))
    if absence == "lost":
        them.replica.suspect()
    else:
        await (await them.hearing(said("unloaded", 2))) if absence == "unloaded" else None
    second = await them.hearing(said("ready", 3, started=1.0 if absence == "another process" else None))
    them.may_end.set()
    await asyncio.gather(first, second)
    assert (them.replica.state, them.begun) == ("ready", 2)
    await them.replica.close()


async def test_who_brings_an_older_ready_waits_for_the_preparation_too() -> None:
    """The end of a load may arrive after a probe that was asked later; then the request is answered all the same."""
    them = Preparing()
    probe = await them.hearing(said("ready", 7))
    load = await them.hearing(said("ready", 6))
    assert not load.done()
    them.may_end.set()
    await asyncio.gather(probe, load)
    assert (them.replica.state, them.begun) == ("ready", 1)
    await them.replica.close()


async def test_a_probe_that_failed_after_a_later_question_was_answered_is_no_silence(probed: Probed) -> None:
    replica = probed.replica
    for failure in (GONE, LATE):

        async def fail(*_: Any, **__: Any) -> bytes:
            probed.now += 1
            await hear(replica, said("ready"))
            probed.now += 60
            raise failure  # noqa: B023

        replica.ask = fail  # type: ignore[method-assign]
        await replica.probe()
        assert replica.state == "ready"


async def test_a_refusal_is_followed_by_the_state_that_its_replica_says(new: New) -> None:
    replica = Answering(new(), said("draining", 5)).replica
    await hear(replica, said("ready", 4))
    assert await replica.state_now() == replica.state == "draining"
