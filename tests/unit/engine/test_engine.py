"""Without these tests answers could hang, come twice or be cut silently. A scripted runner replaces the model."""

import asyncio
import threading
import time

import pytest
import torch

from run_gpt.config import EngineConfig
from run_gpt.engine.engine import BatchEngine
from run_gpt.engine.request import Request, TokenEvent
from run_gpt.engine.runner import ModelRunner
from run_gpt.errors import DeadlineExceeded, InternalError, InvalidRequest, QueueFull, Unavailable

END = 0
VOCABULARY = 100


class ScriptedRunner(ModelRunner):
    """Runner that counts up from the last token of the prompt. Each step waits for the gate, and may be set to fail.

    It keeps the tokens of each slot, as a model's KV cache does.
    """

    end_ids = (END,)
    vocabulary = VOCABULARY
    reuses_prefixes = True
    cheap_tokens = 8
    cache_bytes_per_token = 0
    period = VOCABULARY - 1
    """Largest number before it starts at 1 again."""

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.failures = 0
        self.steps = 0
        self.inside = False
        self.held = {}

    def forward(self, runs):
        last = []
        for run in runs:
            before = self.held.get(run.slot, [])[: run.start]
            assert before == list(run.sequence.token_ids[: run.start])
            self.held[run.slot] = [*before, *run.token_ids]
            last += run.token_ids[len(run.token_ids) - run.num_logits :]
        self.inside = True
        assert self.gate.wait(10)
        self.inside = False
        self.steps += 1
        if self.failures:
            self.failures -= 1
            raise RuntimeError("scripted")
        after = torch.tensor(last, dtype=torch.long) % self.period + 1
        return torch.nn.functional.one_hot(after, VOCABULARY).float()

    def copy(self, copies):
        for copy in copies:
            assert len(self.held[copy.source]) >= copy.length
            self.held[copy.target] = self.held[copy.source][: copy.length]

    def release(self, slots):
        for slot in slots:
            self.held.pop(slot, None)

    def reset(self):
        self.held.clear()

    def beam_search(self, request, stopped, lora=None):
        self.gate.wait(10)
        return [[5, 6, END], [5, 7]][: request.sequences]


def decode(ids):
    return "".join(f"{i} " for i in ids)


@pytest.fixture
def runner():
    return ScriptedRunner()


@pytest.fixture
def start(runner):
    """Start engines; after each test, check the invariants of their schedulers."""
    engines = []

    def start(on_dead=lambda: None, **config):
        engines.append(BatchEngine(runner, decode, EngineConfig(**{"max_waiting": 4, **config}), on_dead))
        return engines[-1]

    yield start
    runner.gate.set()
    for engine in engines:
        engine.shutdown()
        engine.scheduler.check()
        assert not engine._deliveries


@pytest.fixture
def engine(start):
    return start(max_running=3)


def request(name="a", first=10, tokens=3, **more):
    return Request(id=name, prompt_ids=(1, first), max_new_tokens=tokens, **more)


async def collect(engine, request):
    total = TokenEvent(0, "", 0)
    async for event in engine.submit(request):
        total += event
    return total


async def until(condition):
    """Wait until the engine's thread has made a condition true."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_requests_share_steps_and_do_not_mix(engine, runner):
    runner.gate.clear()
    tasks = [asyncio.create_task(collect(engine, request(str(i), first=10 * i, tokens=4))) for i in range(1, 4)]
    await until(lambda: len(engine._deliveries) == 3)
    runner.gate.set()
    answers = await asyncio.gather(*tasks)
    assert [a.text for a in answers] == [decode(range(10 * i + 1, 10 * i + 5)) for i in range(1, 4)]
    assert runner.steps <= 8  # a step for each token, and one more prefill if the first request came a step earlier


async def test_all_sequences_of_a_request_answer(engine, runner):
    texts = ["", "", ""]
    async for event in engine.submit(request(sequences=3)):
        texts[event.index] += event.text
    assert texts == [decode([11, 12, 13])] * 3
    assert engine.stats().kept == 3


async def test_without_reuse_an_idle_engine_holds_no_memory(start, runner):
    engine = start(max_running=3, reuse_prefixes=False)
    await collect(engine, request())
    await until(lambda: not runner.held)


async def test_a_consumer_that_goes_frees_its_slot(engine, runner):
    events = engine.submit(request(tokens=80))
    await anext(events)
    await events.aclose()
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    assert (await collect(engine, request("b", tokens=1))).text == decode([11])


async def test_the_queue_is_bounded(engine, runner):
    runner.gate.clear()
    tasks = [asyncio.create_task(collect(engine, request(str(i)))) for i in range(7)]
    await until(lambda: len(engine._deliveries) == 7)
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


async def test_a_runner_that_fails_without_any_sequence_kills_the_engine_and_it_says_so(start, runner):
    died = threading.Event()
    engine = start(died.set, max_running=1)
    runner.failures = 2
    runner.gate.clear()
    tasks = [asyncio.create_task(collect(engine, request(str(i)))) for i in range(4)]
    await until(lambda: len(engine._deliveries) == 4)
    runner.gate.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(e, InternalError) for e in errors) == 1
    assert sum(isinstance(e, Unavailable) for e in errors) == 3
    await until(died.is_set)
    assert engine.stats().state == "dead"
    with pytest.raises(Unavailable, match="dead"):
        await collect(engine, request("late"))


async def test_an_engine_whose_thread_breaks_leaves_nobody_waiting(start, runner):
    def broken():
        raise RuntimeError("no memory to reset")

    died = threading.Event()
    engine = start(died.set, max_running=1)
    runner.failures, runner.reset = 1, broken
    runner.gate.clear()
    tasks = [asyncio.create_task(collect(engine, request(str(i)))) for i in range(2)]
    await until(lambda: len(engine._deliveries) == 2)
    runner.gate.set()
    for error in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(error, Unavailable)
        assert "no memory to reset" in error.message
    await until(died.is_set)
    assert engine.stats().state == "dead"


async def test_shutdown_drains_what_runs_and_refuses_what_comes(start, runner):
    engine = start(max_running=2)
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


async def test_shutdown_ends_what_does_not_finish_in_time(start, runner):
    engine = start(max_running=1)
    tasks = [asyncio.create_task(collect(engine, request(str(i), tokens=10**9))) for i in range(2)]
    runner.gate.clear()
    await until(lambda: len(engine._deliveries) == 2)
    stopping = asyncio.create_task(asyncio.to_thread(engine.shutdown, 0))
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    runner.gate.set()
    await stopping
    assert all(isinstance(e, Unavailable) for e in errors)


async def test_a_slow_consumer_gets_fewer_events_and_no_less_text(engine, runner):
    events = engine.submit(request(tokens=50))
    first = await anext(events)
    await until(lambda: not engine._deliveries)
    rest = [event async for event in events]
    assert len(rest) <= 1  # none, if all of it was there at the consumer's first read
    assert "".join(event.text for event in (first, *rest)) == decode(range(11, 61))
    assert sum(event.tokens for event in (first, *rest)) == 50


def long_request(name, *more, tokens=4):
    return Request(id=name, prompt_ids=(*range(20, 40), *more), max_new_tokens=tokens)


async def test_a_prompt_that_begins_like_an_earlier_one_says_what_it_reused(engine, runner):
    first = await collect(engine, long_request("a"))
    assert (first.text, first.cached_tokens) == (decode(range(40, 44)), 0)
    # The earlier answer's last token was never run, so that the fourth one is new.
    second = await collect(engine, long_request("b", 40, 41, 42, 43, 60))
    assert (second.text, second.cached_tokens) == (decode(range(61, 65)), 23)
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens) == (45, 23, 8)
    assert (stats.steps, stats.kept) == (8, 1)


async def test_a_failed_step_forgets_what_was_kept(engine, runner):
    await collect(engine, long_request("a"))
    runner.failures = 1
    with pytest.raises(InternalError):
        await collect(engine, long_request("b"))
    assert (await collect(engine, long_request("c"))).cached_tokens == 0


async def test_an_answer_that_repeats_itself_takes_fewer_steps(engine, runner):
    runner.period = 5
    answer = await collect(engine, request(tokens=40))
    assert answer.text == decode([i % 5 + 1 for i in range(40)])
    assert runner.steps < 20
    stats = engine.stats()
    assert 20 < stats.accepted_tokens <= stats.drafted_tokens
    assert stats.generated_tokens == 40


async def test_speculation_can_be_switched_off(start, runner):
    engine, runner.period = start(max_running=3, speculate=False), 5
    await collect(engine, request(tokens=40))
    assert (runner.steps, engine.stats().drafted_tokens) == (40, 0)


async def test_a_consumer_that_goes_during_a_step_leaves_a_prefix_that_is_right(engine, runner):
    """Check that only earlier tokens are kept, because the step that runs on the slot is not undone."""
    events = engine.submit(long_request("a", tokens=10**6))
    await anext(events)
    runner.gate.clear()
    await until(lambda: runner.inside)
    await events.aclose()
    runner.gate.set()
    answer = await collect(engine, long_request("b", 40, 41, 50))
    assert answer.text == decode(range(51, 55))
    assert answer.cached_tokens >= 20


async def test_beam_search_answers_with_whole_sequences(engine):
    events = [event async for event in engine.submit(request(num_beams=2, sequences=2))]
    assert [(e.index, e.text, e.tokens, e.finish_reason) for e in events] == [
        (0, "5 6 ", 3, "stop"),
        (1, "5 7 ", 2, "length"),
    ]


async def test_more_sequences_than_an_empty_server_takes_are_refused_for_good(engine, runner):
    """Check that such a request is no QueueFull, which a client would send again and again."""
    with pytest.raises(InvalidRequest, match=r"at most 3 .--max-running. and 4 .--max-waiting.") as raised:
        await collect(engine, request(sequences=8))
    assert raised.value.param == "num_return_sequences"
    assert (await collect(engine, request("b", sequences=7, tokens=1))).tokens == 7


async def test_beam_searches_run_though_none_may_wait(start, runner):
    engine = start(max_running=1, max_waiting=0)
    runner.gate.clear()
    first = asyncio.create_task(collect(engine, request("a", num_beams=2)))
    await until(lambda: engine.stats().waiting == 1)
    with pytest.raises(QueueFull, match="0 beam searches wait, the limit is 0: try again in 1 s"):
        await collect(engine, request("b", num_beams=2))
    runner.gate.set()
    assert (await first).text == "5 6 "


async def test_a_full_queue_says_when_to_try_again(start, runner):
    engine = start(max_running=2, max_waiting=0)
    engine._metrics._slot_seconds = 8.5
    runner.gate.clear()
    tasks = [asyncio.create_task(collect(engine, request(str(i)))) for i in range(2)]
    await until(lambda: len(engine._deliveries) == 2)
    for sequences, seconds in ((1, 5), (2, 9)):
        with pytest.raises(QueueFull, match=f"try again in {seconds} s") as raised:
            await collect(engine, request("more", sequences=sequences))
        assert raised.value.retry_after == seconds
    runner.gate.set()
    await asyncio.gather(*tasks)
    assert 0 < engine._metrics._slot_seconds < 8.5


def test_an_estimate_is_a_number_of_seconds_within_bounds():
    assert [QueueFull.seconds(estimate) for estimate in (0, 0.2, 1.1, 59, 10**6)] == [1, 1, 2, 59, 60]
