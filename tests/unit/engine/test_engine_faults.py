"""A fault in one sequence's data must end that request alone: the engine's thread serves everybody."""

import asyncio
import random
import threading

import pytest
import torch

from run_gpt.config import EngineConfig
from run_gpt.engine.engine import BatchEngine
from run_gpt.engine.outcomes import Outcomes
from run_gpt.engine.plan import Sequence
from run_gpt.engine.request import Request, TokenEvent
from run_gpt.engine.runner import ModelRunner
from run_gpt.engine.scheduler import Scheduler
from run_gpt.errors import InternalError, InvalidRequest, RequestError

VOCABULARY = 400
BAD = 300
"""First of the token ids whose text cannot be decoded."""


class Panic(BaseException):
    """Error that is no Exception, as a panic in a Rust library."""


class CountingRunner(ModelRunner):
    """Runner that counts up from the last token of each run."""

    end_ids = (0,)
    reuses_prefixes = True
    cheap_tokens = 16
    cache_bytes_per_token = 0

    def __init__(self):
        self.gate = threading.Event()

    def forward(self, runs):
        assert self.gate.wait(10)
        last = [token for run in runs for token in run.token_ids[len(run.token_ids) - run.num_logits :]]
        return torch.nn.functional.one_hot(
            torch.tensor(last, dtype=torch.long) % VOCABULARY + 1, VOCABULARY + 1
        ).float()

    def copy(self, copies):
        pass

    def release(self, slots):
        pass

    def reset(self):
        pass

    def beam_search(self, request, stopped, lora=None):
        raise Panic("a panic in a beam search")


def decode(ids):
    if any(token_id >= BAD for token_id in ids):
        raise Panic("no such token")
    return "".join(f"{token_id} " for token_id in ids)


class BrokenGrammar:
    """Grammar that allows every text, until one of its methods fails."""

    def __init__(self, place, error, after):
        self.place, self.error, self.left = place, error, after

    def _call(self, place):
        if place == self.place:
            self.left -= 1
            if self.left < 0:
                raise self.error

    def matcher(self):
        self._call("matcher")
        return self

    def allows(self, token_id):
        self._call("allows")
        return self.place != "mask"

    def mask(self):
        self._call("mask")
        return torch.ones(VOCABULARY + 1, dtype=torch.bool)

    def advance(self, token_id):
        self._call("advance")

    def forced(self):
        self._call("forced")
        return ()


ERRORS = (ValueError("no number"), KeyError("a"), Panic("broken"), InvalidRequest("not this"), StopIteration())
GRAMMAR = ("matcher", "allows", "mask", "advance", "forced")
METHODS = ((Scheduler, "_place"), (Scheduler, "_run_prompt"), (Outcomes, "_append"), (Outcomes, "_record"))


@pytest.fixture
def broken(monkeypatch):
    """Make a method fail for the requests that its name stands in; Sequence.timing does so for `timing`."""

    def break_method(owner, name, sequence_of):
        original = getattr(owner, name)

        def failing(*arguments):
            if name in sequence_of(arguments).request.id:
                raise Panic(name)
            return original(*arguments)

        is_static = isinstance(vars(owner)[name], staticmethod)
        monkeypatch.setattr(owner, name, staticmethod(failing) if is_static else failing)

    def sequence_of(arguments):
        return next(
            one if isinstance(one, Sequence) else one.sequence
            for one in arguments
            if isinstance(one, Sequence) or hasattr(one, "sequence")
        )

    for owner, name in METHODS:
        break_method(owner, name, sequence_of)
    timing = Sequence.timing.fget
    monkeypatch.setattr(
        Sequence, "timing", property(lambda self: timing(self) if "timing" not in self.request.id else 1 / 0)
    )


def request_of(number, rng):
    """Return a request, and True if a fault ends it."""
    kind = rng.choice(["good", "good", "decode", "grammar", "method", "timing"])
    more = {"sequences": rng.choice([1, 1, 3]), "max_new_tokens": rng.randint(4, 12), "whole": rng.random() < 0.3}
    name, first = f"{number}-good", 10 * number + 1
    if kind == "decode":
        first = BAD - rng.randint(-1, 2)
    elif kind == "grammar":
        more["grammar"] = BrokenGrammar(rng.choice(GRAMMAR), rng.choice(ERRORS), rng.randint(0, 2))
        name = f"{number}-grammar-{more['grammar'].place}"
    elif kind == "method":
        name = f"{number}-{rng.choice(METHODS)[1]}"
    elif kind == "timing":
        name = f"{number}-timing"
    prompt = tuple(range(first - rng.randint(0, 9), first + 1))
    return Request(id=name, prompt_ids=tuple(max(1, token) for token in prompt), **more), kind != "good"


async def answered(engine, request):
    texts = [""] * request.sequences
    async for event in engine.submit(request):
        assert isinstance(event, TokenEvent)
        texts[event.index] += event.text
    return texts


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.usefixtures("broken")
async def test_faults_in_some_requests_leave_the_others_right(seed):
    rng, runner = random.Random(seed), CountingRunner()
    died = threading.Event()
    config = EngineConfig(max_running=rng.choice([1, 3, 8]), max_step_tokens=rng.choice([4, 64]))
    engine = BatchEngine(runner, decode, config, died.set)
    asked = [request_of(number, rng) for number in range(1, 13)]
    tasks = [asyncio.create_task(answered(engine, request)) for request, _ in asked]
    await asyncio.sleep(0)
    runner.gate.set()
    async with asyncio.timeout(20):
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    for (request, is_bad), answer in zip(asked, answers, strict=True):
        if not is_bad:
            last = request.prompt_ids[-1]
            text = "".join(f"{token} " for token in range(last + 1, last + 1 + request.max_new_tokens))
            assert answer == [text] * request.sequences, (request.id, answer)
        elif isinstance(answer, BaseException):  # a grammar may not be asked often enough to fail
            assert isinstance(answer, RequestError), request.id
            assert isinstance(answer, InternalError | InvalidRequest)
    assert not died.is_set()
    assert engine.stats().state == "ready"
    assert await answered(engine, Request(id="after", prompt_ids=(5,), max_new_tokens=2)) == ["6 7 "]
    engine.scheduler.check()
    engine.shutdown()


async def test_a_fault_beside_the_sequences_ends_the_step_and_not_the_engine(monkeypatch):
    runner = CountingRunner()
    runner.gate.set()
    engine = BatchEngine(runner, decode, EngineConfig())
    step = engine._metrics.step
    monkeypatch.setattr(engine._metrics, "step", lambda *arguments: 1 / 0)
    with pytest.raises(InternalError, match="ZeroDivisionError"):
        await answered(engine, Request(id="a", prompt_ids=(5,), max_new_tokens=3))
    monkeypatch.setattr(engine._metrics, "step", step)
    assert await answered(engine, Request(id="b", prompt_ids=(5,), max_new_tokens=2)) == ["6 7 "]
    engine.shutdown()


async def test_a_prompt_without_a_token_is_refused_before_it_waits():
    engine = BatchEngine(CountingRunner(), decode, EngineConfig())
    with pytest.raises(InvalidRequest, match="the prompt has no token"):
        await answered(engine, Request(id="a", prompt_ids=(), max_new_tokens=3))
    assert engine.stats().waiting == engine.stats().running == 0
    engine.shutdown()


async def test_a_beam_search_that_panics_ends_its_request():
    runner = CountingRunner()
    engine = BatchEngine(runner, decode, EngineConfig())
    async with asyncio.timeout(10):
        with pytest.raises(InternalError, match="a panic in a beam search"):
            await answered(engine, Request(id="a", prompt_ids=(5,), max_new_tokens=3, num_beams=2))
    engine.shutdown()
