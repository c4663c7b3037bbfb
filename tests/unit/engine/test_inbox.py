"""Without these tests answers could come late, twice or never, or one consumer could break the others."""

import asyncio
import threading
import time

import pytest
from test_engine import ScriptedRunner, decode, request, until

from run_gpt.config import EngineConfig
from run_gpt.engine.engine import BatchEngine
from run_gpt.engine.events import News
from run_gpt.engine.request import TokenEvent, TokenLogprob
from run_gpt.errors import DeadlineExceeded, InternalError, QueueFull


def hold_until(condition):
    """Block the event loop until the engine's thread has made the condition true."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < 10
        time.sleep(0.001)


class Recorder:
    """Outlet that records its calls."""

    def __init__(self):
        self.events = []
        self.ends = []
        self.thread = None

    def receive(self, event):
        assert not self.ends
        self.events.append(event)
        self.thread = threading.get_ident()

    def ended(self, error):
        self.ends.append(error)

    @property
    def text(self):
        return "".join(event.text for event in self.events)


@pytest.fixture
def runner():
    return ScriptedRunner()


@pytest.fixture
def engine(runner):
    engine = BatchEngine(runner, decode, EngineConfig(max_running=3, max_waiting=4))
    yield engine
    runner.gate.set()
    engine.shutdown()
    engine.scheduler.check()
    assert not engine._deliveries


async def test_an_outlet_hears_its_events_and_one_end_on_its_own_loop(engine):
    heard = Recorder()
    engine.start(request(tokens=5), heard)
    await until(lambda: heard.ends)
    assert (heard.text, heard.ends) == (decode(range(11, 16)), [None])
    assert sum(event.tokens for event in heard.events) == 5
    assert heard.thread == threading.get_ident()


async def test_the_rows_of_a_step_wake_the_loop_once(engine, runner, monkeypatch):
    """Check that there is no call for each sequence, which would cost more than the rest of a step's end."""
    loop, calls, heard = asyncio.get_running_loop(), [], [Recorder() for _ in range(3)]
    wake = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *call, **more: calls.append(call) or wake(*call, **more))
    runner.gate.clear()
    for i, outlet in enumerate(heard):
        engine.start(request(str(i), first=10 * i + 10, tokens=9), outlet)
    runner.gate.set()
    await until(lambda: all(outlet.ends for outlet in heard))
    assert 1 <= len(calls) <= runner.steps


async def test_what_comes_while_the_loop_is_busy_is_one_event(engine):
    heard = Recorder()
    engine.start(request(tokens=50), heard)
    hold_until(lambda: not engine._deliveries)
    await until(lambda: heard.ends)
    [event] = heard.events
    assert (event.text, event.tokens, event.finish_reason) == (decode(range(11, 61)), 50, "length")
    assert event.timing is not None


async def test_a_whole_answer_wakes_the_loop_once(engine, runner, monkeypatch):
    loop, calls, heard = asyncio.get_running_loop(), [], Recorder()
    wake = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *call, **more: calls.append(call) or wake(*call, **more))
    engine.start(request(tokens=20, sequences=2, whole=True), heard)
    await until(lambda: heard.ends)
    assert [(e.index, e.text, e.tokens) for e in heard.events] == [(i, decode(range(11, 31)), 20) for i in (0, 1)]
    assert (len(calls), heard.ends) == (1, [None])


async def test_what_is_refused_is_raised_and_never_told(engine, runner):
    runner.gate.clear()
    for i in range(7):
        engine.start(request(str(i)), Recorder())
    heard = Recorder()
    with pytest.raises(QueueFull):
        engine.start(request("one more"), heard)
    runner.gate.set()
    await until(lambda: not engine._deliveries)
    assert (heard.events, heard.ends) == ([], [])


async def test_an_aborted_request_says_nothing_more_not_even_what_was_on_its_way(engine):
    going, over, other = Recorder(), Recorder(), Recorder()
    engine.start(request("going", tokens=10**6), going)
    engine.start(request("over", tokens=2), over)
    hold_until(lambda: len(engine._deliveries) == 1)
    engine.abort("going")
    engine.abort("over")  # it has ended, but its outlet has not got the end yet
    engine.start(request("other"), other)
    await until(lambda: other.ends)
    assert (going.events, going.ends, over.events, over.ends) == ([], [], [], [])
    assert engine.stats().running == 0


async def test_an_outlet_may_abort_another_of_whose_end_it_will_not_hear(engine):
    class Aborter(Recorder):
        def receive(self, event):
            engine.abort("b")

    first, second = Aborter(), Recorder()
    engine.start(request("a"), first)
    engine.start(request("b"), second)
    hold_until(lambda: not engine._deliveries)
    await until(lambda: first.ends)
    assert (second.events, second.ends) == ([], [])


async def test_an_outlet_that_raises_ends_its_own_request_and_no_other(engine, caplog):
    class Broken(Recorder):
        def receive(self, event):
            raise RuntimeError("cannot write")

    broken, other = Broken(), Recorder()
    engine.start(request("broken", tokens=10**6), broken)
    engine.start(request("other", tokens=30), other)
    await until(lambda: other.ends and broken.ends)
    [error] = broken.ends
    assert isinstance(error, InternalError)
    assert "cannot write" in error.message
    assert "request broken" in caplog.text
    assert (other.text, other.ends) == (decode(range(11, 41)), [None])
    assert engine.stats().running == 0


async def test_an_outlet_that_raises_at_its_end_does_not_break_the_others(engine, caplog):
    class Broken(Recorder):
        def ended(self, error):
            super().ended(error)
            raise RuntimeError("cannot close")

    broken, other = Broken(), Recorder()
    engine.start(request("broken"), broken)
    engine.start(request("other"), other)
    await until(lambda: other.ends)
    assert broken.ends == [None]
    assert "cannot close" in caplog.text


async def test_a_deadline_ends_a_request_by_one_timer(engine, runner):
    runner.gate.clear()
    late, heard = Recorder(), Recorder()
    engine.start(request("late", deadline=time.monotonic() + 0.02), late)
    engine.start(request("in time", deadline=time.monotonic() + 60), heard)
    await until(lambda: late.ends)
    assert isinstance(late.ends[0], DeadlineExceeded)
    runner.gate.set()
    await until(lambda: heard.ends)
    assert (heard.ends, late.events) == ([None], [])


async def test_a_deadline_that_was_not_needed_is_forgotten(engine):
    """Check that the timer is cancelled; else each request would stay in memory until its deadline."""
    loop, heard = asyncio.get_running_loop(), Recorder()
    engine.start(request("a", deadline=time.monotonic() + 60), heard)
    engine.start(request("b", tokens=10**6, deadline=time.monotonic() + 60), Recorder())
    engine.abort("b")
    await until(lambda: heard.ends)
    await asyncio.sleep(0)
    assert all(timer.cancelled() for timer in loop._scheduled if timer.when() > loop.time() + 30)


def test_a_loop_that_is_closed_frees_what_it_asked_for(engine, runner):
    async def ask():
        engine.start(request("gone", tokens=10**6), Recorder())

    async def use():
        heard = Recorder()
        engine.start(request("other", tokens=5), heard)
        await until(lambda: heard.ends and engine.stats().running == 0)
        return heard.text

    runner.gate.clear()
    asyncio.run(ask())
    runner.gate.set()
    assert asyncio.run(use()) == decode(range(11, 16))


def test_to_merge_many_events_is_to_join_them_once():
    """Check the time of many additions: a copy at each one would take time with the square of the answer's length."""
    news, logprob = News(), TokenLogprob(5, -0.5, ((5, -0.5),))
    begun = time.perf_counter()
    for i in range(20_000):
        news.add(TokenEvent(0, "word ", 1, None, (logprob,), 3, (), (logprob,) if not i else ()))
    news.add(TokenEvent(0, "end", 1, "stop", (logprob,), 3))
    [event] = news.events()
    assert time.perf_counter() - begun < 2
    assert event == TokenEvent(0, "word " * 20_000 + "end", 20_001, "stop", (logprob,) * 20_001, 3, (), (logprob,))
