"""The replicas of a pool as names change: working replicas are kept, and those that have left are closed."""

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from run_gpt.gateway import discovery, members
from run_gpt.gateway.members import Members
from run_gpt.gateway.replica import Replica


class FakeReplica(Replica):
    """A replica whose state the test sets."""

    def __init__(self, address: str, prepare: Any = None):
        super().__init__(address, prepare)
        self.probes, self.closed = 0, False

    async def probe(self) -> None:
        self.probes += 1

    async def close(self) -> None:
        self.closed = True
        await super().close()


class Resolver:
    """Resolver that returns the last value that the test set."""

    def __init__(self, *answer: str):
        self.answer: Sequence[str] | BaseException = answer

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "Replica", FakeReplica)
    monkeypatch.setattr(discovery, "LOOKUP_SECONDS", 0.001)


async def nothing(_: Replica) -> None:
    """Do nothing, for tests without adapters."""


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def look_up(them: Members) -> None:
    for name in them.names:
        await name.look_up()
    await them.update()


async def test_replicas_come_and_go_with_the_name() -> None:
    resolver = Resolver("10.0.0.1:5", "10.0.0.2:5")
    them = Members(["engines:5"], nothing, resolver)
    await them.start()
    assert (them.replicas, them.unresolved, them.watched) == ({}, ["engines:5"], True)
    await until(lambda: len(them.replicas) == 2)
    first: Any = them.replicas["10.0.0.1:5"]
    await until(lambda: first.probes)
    resolver.answer = ["10.0.0.2:5", "10.0.0.3:5"]
    await until(lambda: set(them.replicas) == {"10.0.0.2:5", "10.0.0.3:5"})
    await until(lambda: first.closed)
    assert them.watched
    await them.close()


async def test_one_that_is_named_no_more_finishes_what_it_runs() -> None:
    resolver = Resolver("10.0.0.1:5", "10.0.0.2:5")
    them = Members(["engines:5"], nothing, resolver)
    await look_up(them)
    leaving: Any = them.replicas["10.0.0.1:5"]
    leaving.state, leaving.in_flight, resolver.answer = "ready", 1, ["10.0.0.2:5"]
    await look_up(them)
    assert (leaving.takes_requests, leaving.describe()["state"], leaving.closed) == (False, "leaving", False)
    leaving.in_flight = 0
    await look_up(them)
    assert leaving.closed
    assert set(them.replicas) == {"10.0.0.2:5"}
    await them.close()


async def test_one_that_is_named_again_is_probed_before_it_gets_requests() -> None:
    """A replica that is listed again may have missed a change of adapters."""
    resolver = Resolver("10.0.0.1:5", "10.0.0.2:5")
    them = Members(["engines:5"], nothing, resolver)
    await look_up(them)
    replica = them.replicas["10.0.0.1:5"]
    replica.state, replica.in_flight, resolver.answer = "ready", 1, ["10.0.0.2:5"]
    await look_up(them)
    resolver.answer = ["10.0.0.1:5", "10.0.0.2:5"]
    await look_up(them)
    assert them.replicas["10.0.0.1:5"] is replica
    assert (replica.leaving, replica.state) == (False, "connecting")
    await them.close()


@pytest.mark.parametrize("turns", range(5))
async def test_one_that_is_suspected_just_before_it_leaves_is_let_go(turns: int) -> None:
    """The watcher of the replica is cancelled just when it wakes."""
    resolver = Resolver("10.0.0.1:5", "10.0.0.2:5")
    them = Members(["engines:5"], nothing, resolver)
    await look_up(them)
    replica: Any = them.replicas["10.0.0.1:5"]
    await until(lambda: replica.probes)
    await asyncio.sleep(0)
    replica.suspect()
    for _ in range(turns):
        await asyncio.sleep(0)
    resolver.answer = ["10.0.0.2:5"]
    async with asyncio.timeout(10):
        await look_up(them)
    assert replica.closed
    await them.close()


async def test_a_fixed_address_stays_whatever_becomes_of_it() -> None:
    """The supervisor restarts its workers on the same ports."""
    them = Members(["127.0.0.1:5", "engines:5"], nothing, Resolver("127.0.0.1:5", "127.0.0.1:6"))
    await look_up(them)
    assert set(them.replicas) == {"127.0.0.1:5", "127.0.0.1:6"}, "what both mean is one replica"
    them.names[0]._resolve = Resolver("127.0.0.1:6")
    them.replicas["127.0.0.1:5"].state = "lost"
    await look_up(them)
    assert not them.replicas["127.0.0.1:5"].leaving
    await them.close()


@pytest.mark.parametrize("which", ["_lookups", "_watchers"])
async def test_a_task_that_has_died_is_not_hidden(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that no longer watches its replicas must not report that it is ready."""
    resolver = Resolver("10.0.0.1:5")
    them = Members(["engines:5"], nothing, resolver)
    await them.start()
    await until(lambda: them.replicas)
    if which == "_lookups":
        resolver.answer = ZeroDivisionError("a fault of ours")
    else:
        monkeypatch.setattr(FakeReplica, "probe", lambda self: 1 / 0)
        them.replicas["10.0.0.1:5"].suspect()
    await until(lambda: not them.watched)
    await them.close()


async def test_nothing_is_watched_before_the_start() -> None:
    assert not Members(["127.0.0.1:5"], nothing, Resolver()).watched


async def test_probes_of_many_are_spread_out_and_bounded() -> None:
    """Ten thousand replicas must not be probed twice a second each: a core cannot do that much."""
    them = Members(["engines:5"], nothing, Resolver())
    known, new = cast("Replica", SimpleNamespace(state="lost")), cast("Replica", SimpleNamespace(state="connecting"))
    assert 0.4 <= them._pause(known) <= 0.6
    assert 0.08 <= them._pause(new) <= 0.12, "a server that starts is ready as soon as its replica is"
    them.replicas = dict.fromkeys(map(str, range(10_000)), new)
    pauses = [them._pause(new) for _ in range(1000)]
    assert 16 <= min(pauses) < 18
    assert 22 < max(pauses) <= 24


STATES = ("connecting", "ready", "draining", "dead", "lost")
step = st.tuples(
    st.one_of(st.none(), st.sets(st.integers(1, 4))),  # None: the lookup fails
    st.lists(st.tuples(st.sampled_from(STATES), st.integers(0, 1)), min_size=4, max_size=4),
)


@settings(deadline=None)
@given(st.lists(step, max_size=12))
def test_whatever_the_name_server_says(steps: list[Any]) -> None:
    """Only an answer that names other addresses removes a replica that answers."""
    asyncio.run(play(steps))


async def play(steps: list[tuple[set[int] | None, list[tuple[Any, int]]]]) -> None:
    resolver = Resolver()
    them, last = Members(["engines:5"], nothing, resolver), set[str]()
    for answer, states in steps:
        for i, (state, in_flight) in enumerate(states, 1):
            if (replica := them.replicas.get(f"10.0.0.{i}:5")) is not None:
                replica.state, replica.in_flight = state, in_flight
        before = {address: (r.answers, r.leaving, r.in_flight) for address, r in them.replicas.items()}
        named = None if answer is None else {f"10.0.0.{i}:5" for i in answer}
        resolver.answer = OSError("no network") if named is None else sorted(named)
        await look_up(them)
        staying = {address for address, replica in them.replicas.items() if not replica.leaving}
        if named:
            assert staying == named
            last = named
        assert staying <= last
        for address, (answers, leaving, in_flight) in before.items():
            if not named and answers and not leaving:
                assert address in staying
            if in_flight:
                assert address in them.replicas
    resolver.answer = []
    for replica in them.replicas.values():
        replica.state, replica.in_flight = "lost", 0
    await look_up(them)
    assert not them.replicas
    await them.close()
