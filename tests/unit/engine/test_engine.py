"""Hanging, doubled or silently cut answers, if these failed. A scripted runner stands in for the model."""

import asyncio
import threading
import time

import pytest
import torch

from run_gpt.config import EngineConfig
from run_gpt.engine.engine import BatchEngine
from run_gpt.engine.request import Request, TokenEvent
from run_gpt.errors import DeadlineExceeded, InternalError, QueueFull, Unavailable

END = 0
VOCABULARY = 100


class ScriptedRunner:
    """Counts up from the last token of the prompt; each step waits for the gate, and may be told to fail."""

    end_ids = (END,)
    vocabulary = VOCABULARY

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.failures = 0
        self.steps = 0
        self.held = set()

    def prefill(self, chunks):
        self.held |= {chunk.slot for chunk in chunks}
        return self._next([chunk.token_ids[-1] for chunk in chunks if chunk.last])

    def fork(self, pairs):
        assert {source for source, _ in pairs} <= self.held
        self.held |= {target for _, target in pairs}

    def decode(self, slots, token_ids):
        assert set(slots) <= self.held
        return self._next(token_ids)

    def release(self, slots):
        self.held -= set(slots)

    def reset(self):
        self.held.clear()

    def beam_search(self, request, stopped):
        self.gate.wait(10)
        return [[5, 6, END], [5, 7]][: request.sequences]

    def _next(self, last):
        assert self.gate.wait(10)
        self.steps += 1
        if self.failures:
            self.failures -= 1
            raise RuntimeError("scripted")
        return torch.nn.functional.one_hot(torch.tensor(last, dtype=torch.long) + 1, VOCABULARY).float()


def decode(ids):
    return "".join(f"{i} " for i in ids)


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
    assert not engine._mailboxes


def request(name="a", first=10, tokens=3, **more):
    return Request(id=name, prompt_ids=(1, first), max_new_tokens=tokens, **more)


async def collect(engine, request):
    total = TokenEvent(0, "", 0)
    async for event in engine.submit(request):
        total += event
    return total


async def until(condition):
    """Wait for a condition that the engine's thread brings about."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_requests_share_steps_and_do_not_mix(engine, runner):
    runner.gate.clear()
    tasks = [asyncio.create_task(collect(engine, request(str(i), first=10 * i, tokens=4))) for i in range(1, 4)]
    await until(lambda: len(engine._mailboxes) == 3)
    runner.gate.set()
    answers = await asyncio.gather(*tasks)
    assert [a.text for a in answers] == [decode(range(10 * i + 1, 10 * i + 5)) for i in range(1, 4)]
    assert runner.steps <= 8  # a step for each token, and one more prefill when the first came a step earlier


async def test_all_sequences_of_a_request_answer(engine, runner):
    texts = ["", "", ""]
    async for event in engine.submit(request(sequences=3)):
        texts[event.index] += event.text
    assert texts == [decode([11, 12, 13])] * 3
    await until(lambda: not runner.held)  # an idle engine holds no memory


async def test_a_consumer_that_goes_frees_its_slot(engine, runner):
    events = engine.submit(request(tokens=80))
    await anext(events)
    await events.aclose()
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    await collect(engine, request("b", tokens=1))
    assert len(runner.held) <= 1


async def test_the_queue_is_bounded(engine, runner):
    runner.gate.clear()
    tasks = [asyncio.create_task(collect(engine, request(str(i)))) for i in range(7)]
    await until(lambda: len(engine._mailboxes) == 7)
    with pytest.raises(QueueFull, match="limit of 4"):
        await collect(engine, request("one more"))
    runner.gate.set()
    assert len(await asyncio.gather(*tasks)) == 7


async def test_a_deadline_ends_a_request_that_waits_for_the_model(engine, runner):
    runner.gate.clear()
    with pytest.raises(DeadlineExceeded):
        await collect(engine, request(deadline=time.monotonic() + 0.05))
    runner.gate.set()
    await until(lambda: engine.stats().running == 0)


async def test_a_failed_step_fails_its_rows_and_the_engine_lives_on(engine, runner):
    runner.failures = 1
    with pytest.raises(InternalError, match="RuntimeError: scripted"):
        await collect(engine, request())
    assert (await collect(engine, request("b"))).text == decode([11, 12, 13])
    assert engine.stats().state == "ready"


async def test_two_failed_steps_kill_the_engine_and_it_says_so(runner):
    died = threading.Event()
    engine = BatchEngine(runner, decode, EngineConfig(max_running=1, max_waiting=4), on_dead=died.set)
    runner.failures = 2
    runner.gate.clear()
    tasks = [asyncio.create_task(collect(engine, request(str(i)))) for i in range(4)]
    await until(lambda: len(engine._mailboxes) == 4)
    runner.gate.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(e, InternalError) for e in errors) == 2
    assert sum(isinstance(e, Unavailable) for e in errors) == 2
    await until(died.is_set)
    assert engine.stats().state == "dead"
    with pytest.raises(Unavailable, match="dead"):
        await collect(engine, request("late"))
    engine.shutdown()


async def test_an_engine_whose_thread_breaks_leaves_nobody_waiting(runner):
    def broken():
        raise RuntimeError("no memory to reset")

    died = threading.Event()
    engine = BatchEngine(runner, decode, EngineConfig(max_running=1, max_waiting=4), on_dead=died.set)
    runner.failures, runner.reset = 1, broken
    runner.gate.clear()
    tasks = [asyncio.create_task(collect(engine, request(str(i)))) for i in range(2)]
    await until(lambda: len(engine._mailboxes) == 2)
    runner.gate.set()
    for error in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(error, Unavailable)
        assert "no memory to reset" in error.message
    await until(died.is_set)
    assert engine.stats().state == "dead"
    engine.shutdown()


async def test_shutdown_drains_what_runs_and_refuses_what_comes(runner):
    engine = BatchEngine(runner, decode, EngineConfig(max_running=2, max_waiting=4))
    runner.gate.clear()
    running = asyncio.create_task(collect(engine, request(tokens=5)))
    await until(lambda: engine.stats().running == 1)
    stopping = asyncio.create_task(asyncio.to_thread(engine.shutdown, 10))
    await until(lambda: engine.stats().state == "draining")
    with pytest.raises(Unavailable, match="draining"):
        await collect(engine, request("late"))
    runner.gate.set()
    assert (await running).finish_reason == "length"
    await stopping


async def test_shutdown_ends_what_does_not_finish_in_time(runner):
    engine = BatchEngine(runner, decode, EngineConfig(max_running=1, max_waiting=4))
    tasks = [asyncio.create_task(collect(engine, request(str(i), tokens=10**9))) for i in range(2)]
    runner.gate.clear()
    await until(lambda: len(engine._mailboxes) == 2)
    stopping = asyncio.create_task(asyncio.to_thread(engine.shutdown, 0))
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    runner.gate.set()
    await stopping
    assert all(isinstance(e, Unavailable) for e in errors)


async def test_a_slow_consumer_gets_fewer_events_and_no_less_text(engine, runner):
    events = engine.submit(request(tokens=50))
    first = await anext(events)
    await until(lambda: not engine._mailboxes)
    rest = [event async for event in events]
    assert len(rest) == 1
    assert first.text + rest[0].text == decode(range(11, 61))
    assert first.tokens + rest[0].tokens == 50


async def test_beam_search_answers_with_whole_sequences(engine):
    events = [event async for event in engine.submit(request(num_beams=2, sequences=2))]
    assert [(e.index, e.text, e.tokens, e.finish_reason) for e in events] == [
        (0, "5 6 ", 3, "stop"),
        (1, "5 7 ", 2, "length"),
    ]
