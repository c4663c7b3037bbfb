"""Without these tests one request that breaks the runner could end the answers of all others, or the engine."""

import asyncio
import random
import threading

import pytest
from test_engine import ScriptedRunner, collect, decode, request, until

from run_gpt.config import EngineConfig
from run_gpt.engine.engine import BatchEngine
from run_gpt.engine.request import Request, SamplingParams
from run_gpt.errors import InternalError, InvalidRequest, Unavailable

BAD = 77


class Panic(BaseException):
    """Error that is no Exception, as a panic in a Rust library."""


class FragileRunner(ScriptedRunner):
    """Runner that fails, half-way, in every step with a run that `breaks` names."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.breaks = lambda runs: BAD in [token for run in runs for token in run.token_ids]
        self.error = IndexError("index out of range in self")

    def forward(self, runs):
        self.calls += 1
        logits = super().forward(runs)
        if self.breaks(runs):
            raise self.error
        return logits

    def embed(self, runs):
        return self.forward(runs)[:, :4].new_ones(len(runs), 4)


@pytest.fixture
def runner():
    return FragileRunner()


@pytest.fixture
def start(runner):
    engines = []

    def start(on_dead=lambda: None, **config):
        engines.append(BatchEngine(runner, decode, EngineConfig(**config), on_dead, vocabulary=100))
        return engines[-1]

    yield start
    runner.gate.set()
    for engine in engines:
        engine.shutdown()
        engine.scheduler.check()
        assert not engine._deliveries


async def all_of(engine, runner, requests):
    """Run requests together, from the first step on; return their answers and errors."""
    runner.gate.clear()
    tasks = [asyncio.create_task(collect(engine, one)) for one in requests]
    await until(lambda: len(engine._deliveries) == len(requests))
    runner.gate.set()
    async with asyncio.timeout(30):
        return await asyncio.gather(*tasks, return_exceptions=True)


def right(asked):
    first = asked.prompt_ids[-1]
    return decode([(first + i) % 99 + 1 for i in range(asked.max_new_tokens)])


@pytest.mark.parametrize("seed", range(12))
async def test_the_sequences_that_break_the_runner_end_and_no_others(start, runner, seed):
    """Check bad tokens in prompts, long ones too, and in answers; seeded samples are those without a failure."""
    rng = random.Random(seed)
    runner.error = rng.choice([IndexError("no row"), RuntimeError("cuda"), Panic("panic"), MemoryError()])
    engine = start(max_running=rng.choice([3, 8, 16]), max_step_tokens=rng.choice([4, 16, 512]))
    asked, bad = [], set()
    for number in range(14):
        prompt = [rng.randrange(1, 40) for _ in range(rng.choice([2, 5, 30]))]
        kind = rng.choice(["good", "good", "good", "prompt", "answer"])
        if kind == "prompt":
            prompt[rng.randrange(len(prompt))] = BAD
        elif kind == "answer":
            prompt[-1] = BAD - rng.randrange(2, 4)
        bad |= set() if kind == "good" else {number}
        asked.append(Request(id=str(number), prompt_ids=tuple(prompt), max_new_tokens=rng.randrange(4, 9)))
    for number, (one, answer) in enumerate(zip(asked, await all_of(engine, runner, asked), strict=True)):
        if number in bad:
            assert isinstance(answer, InternalError), number
        else:
            assert answer.text == right(one), number
    assert engine.stats().state == "ready"
    assert runner.calls < 1000


async def test_a_row_of_requests_that_break_the_runner_does_not_end_the_engine(start, runner):
    engine = start(max_running=4)
    for number in range(5):
        with pytest.raises(InternalError, match="index out of range"):
            await collect(engine, request(str(number), first=BAD))
    assert (await collect(engine, request("good"))).text == decode([11, 12, 13])


async def test_an_error_that_does_not_come_again_ends_no_request(start, runner):
    engine, runner.failures = start(max_running=4), 1
    asked = [request(str(i), first=10 * i) for i in range(1, 5)]
    answers = await all_of(engine, runner, asked)
    assert [answer.text for answer in answers] == [right(one) for one in asked]


async def test_an_embedding_that_breaks_the_runner_ends_alone_and_draws_are_not_lost(start, runner):
    engine = start(max_running=4)
    drawn = SamplingParams(do_sample=True, temperature=2.0, seed=5, logit_bias={BAD: -100.0})
    sampled = Request(id="a", prompt_ids=(1, 2), max_new_tokens=6, sampling=drawn)
    alone = await collect(engine, sampled)
    wrong = Request(id="b", prompt_ids=(3, BAD, 4), max_new_tokens=0, pooling="mean")
    fine = Request(id="c", prompt_ids=(3, 4), max_new_tokens=0, pooling="mean")
    answer, error, embedded = await all_of(engine, runner, [sampled, wrong, fine])
    assert answer.text == alone.text
    assert isinstance(error, InternalError)
    assert len(embedded.embedding) == 4


async def test_a_runner_that_fails_with_every_sequence_ends_the_engine_soon(start, runner):
    died = threading.Event()
    engine = start(died.set, max_running=16)
    runner.breaks = lambda runs: True
    answers = await all_of(engine, runner, [request(str(i), first=i) for i in range(1, 17)])
    assert sum(isinstance(answer, InternalError) for answer in answers) == 1
    assert sum(isinstance(answer, Unavailable) for answer in answers) == 15
    await until(died.is_set)
    assert runner.calls <= 8


async def test_a_runner_that_fails_with_many_at_once_ends_the_newest_and_serves_the_others(start, runner):
    """Check a lack of memory, for example: no sequence is the cause alone, and the search must end."""
    engine = start(max_running=8)
    runner.breaks = lambda runs: len(runs) > 6
    asked = [request(str(i), first=5 * i, tokens=12) for i in range(1, 9)]
    answers = await all_of(engine, runner, asked)
    ended = [isinstance(answer, InternalError) for answer in answers]
    assert ended == [False] * 6 + [True] * 2
    assert [answer.text for answer in answers[:6]] == [right(one) for one in asked[:6]]


async def test_a_request_that_is_aborted_in_the_search_leaves_no_trace(start, runner):
    engine = start(max_running=4)
    gone = asyncio.create_task(collect(engine, request("gone", first=BAD, tokens=50)))
    staying = asyncio.create_task(collect(engine, request("staying", tokens=50)))
    runner.gate.clear()
    await until(lambda: runner.inside)
    gone.cancel()
    runner.gate.set()
    assert (await staying).text == decode(range(11, 61))


@pytest.mark.parametrize("wrong", [-1, 100, 2**40])
@pytest.mark.parametrize("param", ["prompt", "logit_bias"])
async def test_ids_beyond_the_models_rows_are_refused_before_they_wait(start, runner, wrong, param):
    engine = start()
    bias = {wrong: 1.0} if param == "logit_bias" else {}
    prompt = (1, wrong) if param == "prompt" else (1, 2)
    with pytest.raises(InvalidRequest, match=f"{param}: token id {wrong} is outside the vocabulary of 100"):
        await collect(
            engine, Request(id="a", prompt_ids=prompt, max_new_tokens=1, sampling=SamplingParams(logit_bias=bias))
        )
    assert engine.stats().waiting == runner.calls == 0
