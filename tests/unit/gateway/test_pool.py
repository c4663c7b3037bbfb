"""The pool's guarantees, with scripted calls for the wire: the choice of a replica, retries, and errors."""

import asyncio
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from run_gpt.api.answers import Choice, GenerateAnswer, Status, Usage
from run_gpt.api.pieces import Piece
from run_gpt.api.schema import GenerateRequest
from run_gpt.errors import DeadlineExceeded, InternalError, QueueFull, RequestError, Unavailable
from run_gpt.gateway.affinity import MOST_WORTH
from run_gpt.gateway.pool import ATTEMPTS, ReplicaPool
from run_gpt.gateway.replica import PREPARED
from run_gpt.gateway.streams import SEQUENCES_AT_ONCE, Streams
from run_gpt.link.calling import ConnectionFailed, Exchange

READY = Status(state="ready", model="m", running=0, waiting=0)
REQUEST = GenerateRequest(prompt="x")


def completion(text: str, reason: Any = None, index: int = 0) -> GenerateAnswer:
    usage = Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2)
    return GenerateAnswer(
        id="i", created=1, model="m", usage=usage, choices=[Choice(index=index, text=text, finish_reason=reason)]
    )


GONE = ConnectionFailed("the connection to the replica failed")
BROKEN = InternalError("the model server failed: ZeroDivisionError")


class ScriptedExchange(Exchange):
    """An exchange whose news are a script: an error or the script's end ends it; "hang" waits to be cancelled."""

    def __init__(self, arrived: asyncio.Event, script: list[Any]):
        self.cancelled = asyncio.Event()
        self.limited: float | None = None
        super().__init__(arrived, self.cancelled.set)
        self._playing = asyncio.get_running_loop().call_soon(self._play, iter(script))

    def limit(self, seconds: float) -> None:
        self.limited = seconds
        super().limit(seconds)

    def _play(self, script: Any) -> None:
        item = next(script, None)
        if self.over or item == "hang":
            return
        if item is None or isinstance(item, RequestError):
            self.end(item)
            return
        self.put(item)
        self._playing = asyncio.get_running_loop().call_soon(self._play, script)


class ScriptedReplica:
    """Stand-in for a replica: each request plays the next script."""

    def __init__(self, *scripts: list[Any], says: str = "ready"):
        self.scripts = list(scripts)
        self.calls: list[ScriptedExchange] = []
        self.state = "ready"
        self.status = READY
        self.in_flight = 0
        self.cache = object()
        self.says = says
        """State that it reports if it is asked now."""
        self.connects_in = 0.0

    @property
    def takes_requests(self) -> bool:
        return self.state in PREPARED

    async def start(self, *_: Any, arrived: asyncio.Event, **__: Any) -> Exchange:
        await asyncio.sleep(self.connects_in)
        self.calls.append(ScriptedExchange(arrived, self.scripts[len(self.calls)]))
        return self.calls[-1]

    def suspect(self) -> None:
        self.state = "lost"

    async def state_now(self) -> str:
        self.state = self.says
        return self.says


def pool_of(*replicas: Any) -> ReplicaPool:
    pool = ReplicaPool([])
    pool.members.replicas = {str(i): replica for i, replica in enumerate(replicas)}
    return pool


def unary(text: str) -> bytes:
    return completion(text, "stop").to_json().encode()


def event(text: str, reason: Any = None, index: int = 0) -> Piece:
    return Piece(index, text, 1, finish=reason)


def streams(pool: ReplicaPool, *requests: GenerateRequest) -> Streams:
    return Streams(pool, requests or [REQUEST], time.monotonic() + 5, lambda: "id")


async def read(pool: ReplicaPool, *requests: GenerateRequest) -> tuple[str, RequestError | None]:
    text, reading = "", streams(pool, *requests)
    try:
        while news := await reading.read():
            text += "".join(one.text for _, one in news if isinstance(one, Piece))
    except RequestError as error:
        return text, error
    finally:
        await reading.close()
    return text, None


async def ask(pool: ReplicaPool) -> tuple[str, RequestError | None]:
    try:
        return (await pool.answer(REQUEST, "id", 5)).text, None  # type: ignore[attr-defined]
    except RequestError as error:
        return "", error


REFUSAL = Unavailable("the engine is draining")
"""Answer of a replica that refuses all requests."""


async def test_without_a_ready_replica_a_request_is_refused_at_once() -> None:
    replica = ScriptedReplica()
    for state, says in (("connecting", "loading"), ("lost", "no replica"), ("dead", "dead"), ("draining", "draining")):
        replica.state = state
        with pytest.raises(Unavailable, match=says):
            await pool_of(replica).answer(REQUEST, "id", 5)


@pytest.mark.parametrize("state", ["silent", "stuck"])
async def test_a_doubtful_replica_gets_requests_where_no_other_is_ready(state: str) -> None:
    """It may only be busy: with one replica a slow moment is no 503."""
    doubtful, ready = ScriptedReplica([unary("slow")]), ScriptedReplica(*([unary("quick")] for _ in range(9)))
    doubtful.state = state
    pool = pool_of(doubtful, ready)
    assert [(await ask(pool))[0] for _ in range(9)] == ["quick"] * 9
    ready.state = "lost"
    assert await ask(pool) == ("slow", None)
    assert (pool.ready, pool.sure) == ([doubtful], [])


async def test_a_name_without_an_address_yet_is_said() -> None:
    with pytest.raises(Unavailable, match="no replica is known yet: waiting for engines:5 to resolve"):
        ReplicaPool(["engines:5"]).check_ready()


async def test_a_unary_request_goes_to_another_replica_when_the_connection_fails() -> None:
    bad, good = ScriptedReplica([GONE]), ScriptedReplica([unary("hello")])
    pool = pool_of(bad, good)
    assert (await pool.answer(REQUEST, "id", 5)).text == "hello"
    assert (bad.state, bad.in_flight, good.in_flight) == ("lost", 0, 0)
    assert pool.retries == 1


async def test_a_request_that_a_draining_replica_refuses_goes_to_another() -> None:
    """A rolling update loses no request, even if many replicas drain before a probe has shown it."""
    for asking in (ask, read):
        refusing = [ScriptedReplica([REFUSAL], says="draining") for _ in range(9)]
        good = ScriptedReplica([unary("hello")] if asking is ask else [event("hello", "stop")])
        assert await asking(pool_of(*refusing, good)) == ("hello", None)
        assert [replica.state for replica in refusing] == ["draining"] * 9
        assert [replica.in_flight for replica in (*refusing, good)] == [0] * 10


async def test_a_request_is_refused_when_every_replica_is_draining() -> None:
    replicas = [ScriptedReplica([REFUSAL], says="draining") for _ in range(2)]
    text, error = await ask(pool_of(*replicas))
    assert (text, type(error)) == ("", Unavailable)
    assert "draining" in str(error)
    assert [len(replica.calls) for replica in replicas] == [1, 1]


async def test_a_request_that_may_kill_engines_does_not_kill_all() -> None:
    """An engine that dies of a request also refuses it with Unavailable."""
    replicas = [ScriptedReplica([REFUSAL], says=state) for state in ("dead", "lost", "ready", "ready", "dead")]
    text, error = await ask(pool_of(*replicas))
    assert (text, type(error)) == ("", Unavailable)
    assert sum(len(replica.calls) for replica in replicas) == 3


async def test_a_replica_that_refuses_and_says_it_is_ready_gets_a_request_once() -> None:
    text, error = await ask(pool_of(ScriptedReplica([REFUSAL], says="ready")))
    assert (text, type(error)) == ("", Unavailable)
    assert str(error) == "the engine is draining", "what it said itself"


async def test_a_replica_that_refuses_one_request_and_says_it_is_ready_gets_the_next() -> None:
    replica = ScriptedReplica([REFUSAL], [unary("hello")], says="ready")
    pool = pool_of(replica)
    assert (await ask(pool))[0] == ""
    assert await ask(pool) == ("hello", None)


@pytest.mark.parametrize("asking", [ask, read])
async def test_a_request_that_finds_a_full_queue_goes_to_another_replica_two_times(asking: Any) -> None:
    """Gateways do not know each other's requests: a 429 must mean that more than one replica is full."""
    full = QueueFull("full")
    free = [unary("hello")] if asking is ask else [event("hello", "stop")]
    replicas = [ScriptedReplica([full]), ScriptedReplica([full]), ScriptedReplica(free)]
    assert await asking(pool_of(*replicas)) == ("hello", None)
    assert {replica.state for replica in replicas} == {"ready"}, "a full one is full for a moment"
    replicas = [ScriptedReplica([full]) for _ in range(5)]
    text, error = await asking(pool_of(*replicas))
    assert (text, type(error), str(error)) == ("", QueueFull, "full")
    assert sum(len(replica.calls) for replica in replicas) == 3


async def test_a_stream_that_is_refused_after_its_first_event_is_not_tried_again() -> None:
    first, second = ScriptedReplica([event("a"), REFUSAL]), ScriptedReplica([event("no", "stop")])
    text, error = await read(pool_of(first, second))
    assert (text, type(error), second.calls) == ("a", Unavailable, [])


async def test_a_conversation_stays_on_its_replica_and_leaves_it_when_the_connection_fails() -> None:
    first, second = ScriptedReplica([unary("1")], [unary("2")], [GONE]), ScriptedReplica([unary("3")])
    pool = pool_of(first, second)
    long = GenerateRequest(prompt="x" * 5000)
    assert [(await pool.answer(long, "id", 5)).text for _ in range(3)] == ["1", "2", "3"]
    assert first.state == "lost"


async def test_of_one_replica_there_is_nothing_to_remember() -> None:
    pool = pool_of(ScriptedReplica([unary("a")]))
    await pool.answer(GenerateRequest(prompt="x" * 5000), "id", 5)
    assert len(pool.affinity) == 0


@settings(deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from(["ready", "lost", "draining", "connecting"]), st.integers(0, 12)), min_size=3
        ),
        min_size=1,
        max_size=20,
    ),
    st.data(),
)
def test_no_request_goes_where_it_cannot_be_answered(rounds: list[Any], data: st.DataObject) -> None:
    """A replica must be ready, and have fewer than MOST_WORTH more requests, however long a cached prefix is."""
    replicas = [ScriptedReplica() for _ in range(3)]
    pool = pool_of(*replicas)
    for states in rounds:
        for replica, (state, in_flight) in zip(replicas, states, strict=False):
            replica.state, replica.in_flight = state, in_flight
        request = GenerateRequest(prompt="x" * data.draw(st.integers(1, 30_000)))
        ready = [replica.in_flight for replica in replicas if replica.state == "ready"]
        try:
            taken: Any = pool._take(pool._tries(request))
        except Unavailable:
            assert not ready
            continue
        assert taken.state == "ready"
        assert taken.in_flight - 1 <= min(ready) + MOST_WORTH


@pytest.mark.parametrize(("error", "kind"), [("hang", DeadlineExceeded), (BROKEN, InternalError)])
async def test_no_other_failure_is_tried_again(error: Any, kind: type[RequestError]) -> None:
    """A request that breaks one replica must not break the next one."""
    first, second = ScriptedReplica([error]), ScriptedReplica([unary("no")])
    with pytest.raises(kind):
        await pool_of(first, second).answer(REQUEST, "id", 0.01)
    assert second.calls == []


async def test_a_stream_is_tried_again_only_before_its_first_event() -> None:
    bad, good = ScriptedReplica([GONE]), ScriptedReplica([event("a"), event("b", "stop")])
    assert await read(pool_of(bad, good)) == ("ab", None)
    bad, good = ScriptedReplica([event("a"), GONE]), ScriptedReplica([event("no", "stop")])
    text, error = await read(pool_of(bad, good))
    assert (text, type(error).__mro__[1], good.calls) == ("a", Unavailable, [])


async def test_a_stream_that_stops_before_it_is_complete_is_an_error() -> None:
    scripts: list[list[Any]] = [[], [event("a")], [event("a", "stop", 0), event("b", None, 1)]]
    for script in scripts:
        request = GenerateRequest(prompt="x", n=2)
        text, error = await read(pool_of(ScriptedReplica(script)), request)
        assert isinstance(error, InternalError)
        assert text == "".join("ab"[: len(script)])


async def test_a_stream_that_brings_no_text_is_an_error() -> None:
    """A body of another kind must not count as the answer's text, nor as its end."""
    text, error = await read(pool_of(ScriptedReplica([unary("no")])))
    assert (text, type(error)) == ("", InternalError)


async def test_a_failure_after_the_last_event_changes_nothing() -> None:
    assert await read(pool_of(ScriptedReplica([event("a", "stop"), GONE]))) == ("a", None)


async def test_the_error_that_a_stream_carries_is_raised() -> None:
    text, error = await read(pool_of(ScriptedReplica([event("a"), QueueFull("full")])))
    assert (text, type(error), str(error)) == ("a", QueueFull, "full")


async def test_a_reader_that_stops_cancels_the_call() -> None:
    replica = ScriptedReplica([event("a"), "hang"])
    reading = streams(pool_of(replica))
    assert await reading.read()
    assert replica.in_flight == 1
    await reading.close()
    await asyncio.sleep(0)
    assert replica.calls[0].cancelled.is_set()
    assert replica.in_flight == 0


async def test_a_cancelled_caller_cancels_the_call_and_is_cancelled() -> None:
    replica = ScriptedReplica(["hang"])
    task = asyncio.create_task(pool_of(replica).answer(REQUEST, "id", 5))
    while not replica.calls:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert replica.calls[0].cancelled.is_set()
    assert replica.in_flight == 0


async def test_a_stopped_pool_ends_what_runs_and_takes_nothing() -> None:
    replica = ScriptedReplica(["hang"], [event("a"), "hang"])
    pool = pool_of(replica)
    answer, reading = asyncio.create_task(pool.answer(REQUEST, "id", 5)), streams(pool)
    await reading.read()
    pool.stop("the server stops")
    with pytest.raises(Unavailable, match="the server stops"):
        await answer
    with pytest.raises(Unavailable, match="the server stops"):
        await reading.read()
    with pytest.raises(Unavailable):
        await pool.answer(REQUEST, "id", 5)


async def test_the_message_of_a_missed_deadline_gives_the_limit() -> None:
    with pytest.raises(DeadlineExceeded, match=r"not complete after 0\.01 s"):
        await pool_of(ScriptedReplica(["hang"])).answer(REQUEST, "id", 0.01)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"choices": [{"index": 0, "text": "x"}]}', b"[1", event("x", "stop")])
async def test_what_is_no_answer_is_an_internal_error(body: Any) -> None:
    """A user must not mistake a malformed body for an answer."""
    with pytest.raises(InternalError):
        await pool_of(ScriptedReplica([body])).answer(REQUEST, "id", 5)


async def test_the_time_to_connect_counts() -> None:
    """A user gets an answer or an error within the requested limit."""
    replica = ScriptedReplica([unary("a")])
    replica.connects_in = 0.05
    await pool_of(replica).answer(REQUEST, "id", 5)
    limited = replica.calls[0].limited
    assert limited is not None
    assert limited <= 4.96
    replica = ScriptedReplica([unary("a")])
    replica.connects_in = 10
    with pytest.raises(DeadlineExceeded, match=r"no replica answered within 0\.01 s"):
        await pool_of(replica).answer(REQUEST, "id", 0.01)
    assert (replica.in_flight, replica.state) == (0, "ready")


AT_ONCE = [None, GONE, REFUSAL, QueueFull("full"), BROKEN]
"""Errors in place of an answer; None: an answer."""
LATER = [None, GONE, REFUSAL, BROKEN]
"""Errors after some text; None: a complete text."""


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(AT_ONCE), st.integers(0, 3), st.sampled_from(LATER)),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
)
def test_a_text_comes_from_one_replica_and_once(plays: list[Any], refusing_drain: bool) -> None:
    """No text comes twice or from two answers, no replica is tried twice, and none keeps a request, in any failure."""

    async def check() -> None:
        replicas = []
        for number, (first, count, last) in enumerate(plays):
            texts = [event(f"{number}.{i} ", "stop" if last is None and i == count else None) for i in range(count + 1)]
            script = [*texts, *([] if last is None else [last])] if first is None else [first]
            replicas.append(ScriptedReplica(script, says="draining" if refusing_drain else "ready"))
        pool = pool_of(*replicas)
        text, error = await read(pool)
        called = [number for number, replica in enumerate(replicas) if replica.calls]
        assert all(len(replica.calls) <= 1 for replica in replicas)
        answered = [number for number in called if plays[number][0] is None]
        assert len(answered) <= 1
        told = "".join(f"{number}.{i} " for number in answered for i in range(plays[number][1] + 1))
        assert text == told
        if answered:
            assert error is plays[answered[0]][2]
        else:
            assert isinstance(error, RequestError)
            broken = sum(plays[number][0] is BROKEN for number in called)
            assert broken <= 1
            excused = sum(plays[number][0] is REFUSAL for number in called) if refusing_drain else 0
            assert len(called) - excused <= ATTEMPTS
            assert broken or len(called) == len(plays) or len(called) - excused == ATTEMPTS
        assert pool.retries == len(called) - 1
        await asyncio.sleep(0)
        assert [replica.in_flight for replica in replicas] == [0] * len(replicas)

    asyncio.run(check())


def natives(count: int, n: int = 1) -> list[GenerateRequest]:
    return [GenerateRequest(prompt="x", n=n) for _ in range(count)]


async def test_several_native_requests_are_read_together_each_by_its_number() -> None:
    replica = ScriptedReplica(*([event(f"{i}", None), event(f"{i}", "stop")] for i in range(5)))
    reading, texts = streams(pool_of(replica), *natives(5)), [""] * 5
    while news := await reading.read():
        for which, piece in news:
            assert isinstance(piece, Piece)
            texts[which] += piece.text
    await reading.close()
    assert texts == ["00", "11", "22", "33", "44"]
    assert replica.in_flight == 0


async def test_one_that_fails_of_several_is_the_error_of_all_and_the_others_are_cancelled() -> None:
    """Half an answer is no answer; and a request that is not read must not go on."""
    replica = ScriptedReplica([event("a"), "hang"], [BROKEN], [event("c"), "hang"])
    text, error = await read(pool_of(replica), *natives(3))
    assert set(text) <= set("ac")
    assert error is BROKEN
    await asyncio.sleep(0)
    assert [call.cancelled.is_set() for call in replica.calls] == [True, False, True]
    assert replica.in_flight == 0


async def test_the_error_of_one_is_told_while_the_others_go_on() -> None:
    replica = ScriptedReplica([event("a")] * 1000, [BROKEN])
    reading, reads = streams(pool_of(replica), *natives(2)), 0

    async def read_all() -> None:
        nonlocal reads
        while await reading.read():
            reads += 1
            await asyncio.sleep(0)  # a reader that writes the news: meanwhile more arrives

    with pytest.raises(InternalError):
        await read_all()
    await reading.close()
    assert reads < 10


@pytest.mark.parametrize(("n", "together"), [(1, SEQUENCES_AT_ONCE), (16, SEQUENCES_AT_ONCE // 16), (64, 1)])
async def test_a_request_of_very_many_texts_leaves_room_for_others(n: int, together: int) -> None:
    replica = ScriptedReplica(*(["hang"] for _ in range(40)))
    reading = streams(pool_of(replica), *natives(40, n))
    for _ in range(50):
        await asyncio.sleep(0)
    assert replica.in_flight == together
    await reading.close()
