"""Evaluations that rank answers by wrong numbers, if these failed: scores of a prompt are those of one plain forward
pass in fp32, with every runner, whatever else is in the batch."""

import asyncio
import copy
import itertools
from functools import cache

import pytest
import torch
from families import FAMILIES, build

from run_gpt.config import EngineConfig
from run_gpt.engine.choice import choose_runner
from run_gpt.engine.engine import BatchEngine
from run_gpt.engine.native.binding import Kernels
from run_gpt.engine.native.build import built, unsupported
from run_gpt.engine.native.weights import PackedWeights
from run_gpt.engine.request import Request, TokenEvent
from run_gpt.engine.scheduler import MAX_SCORED
from run_gpt.models.cache import cache_root

RUNNERS = {"native": ("native", "fast", "generic"), "generic": ("generic",), "alone": ("alone",)}
CASES = [(family, runner) for family in FAMILIES for runner in RUNNERS[FAMILIES[family].runner]]
# One for each runner, for what does not depend on the family.
SOME = [("llama", "native"), ("llama", "fast"), ("bloom", "generic"), ("mamba", "alone")]
ROWS = 4
NUMBERS = itertools.count()
LENGTHS = (300, 1, 129, 5, 40, 2)
"""Several parts, nothing to score, a last token alone, and some that share a part."""


@cache
def model_of(family):
    return build(FAMILIES[family])


@cache
def prompts():
    generator = torch.Generator().manual_seed(3)
    return [tuple(torch.randint(3, 128, (length,), generator=generator).tolist()) for length in LENGTHS]


@cache
def expected(family, prompt):
    """Of each token but the first, the log-probabilities of the whole vocabulary in its place."""
    with torch.inference_mode():
        return model_of(family)(torch.tensor([prompt]), use_cache=False).logits[0, :-1].float().log_softmax(-1)


class Watched:
    """Lets a test know how many rows of logits each step had, and do something between steps."""

    def __init__(self, runner):
        self.rows, self.between, self._forward = [], None, runner.forward
        runner.forward = self.forward

    def forward(self, runs):
        logits = self._forward(runs)
        self.rows.append(len(logits))
        if self.between:
            self.between()
        return logits


@cache
def kernels():
    if unsupported() is not None:
        pytest.skip(str(unsupported()))
    return Kernels(built(cache_root() / "kernels"))


def runner_of(family, name):
    config = EngineConfig(max_running=ROWS, runner=name)
    model = copy.deepcopy(model_of(family))  # the fast runners take its layers over
    packed = PackedWeights.of(model, kernels(), "fp32") if name == "native" else None
    return choose_runner(model, config, packed=packed)


@pytest.fixture
def start():
    """`start(family, runner)`: an engine and what is watched of its runner."""
    engines = []

    def start(family, name, **options):
        runner = runner_of(family, name)
        watched = Watched(runner)
        config = EngineConfig(max_running=ROWS, max_step_tokens=200, runner=name, **options)
        engines.append(BatchEngine(runner, lambda ids: "".join(f"{i} " for i in ids), config))
        return engines[-1], watched

    yield start
    for engine in engines:
        engine.shutdown()
        engine.scheduler.check()


async def run(engine, prompt, k=None, tokens=6, **more):
    """Each sequence's events as one, and its first event's scores."""
    request = Request(
        id=str(next(NUMBERS)),
        prompt_ids=prompt,
        max_new_tokens=tokens,
        prompt_logprobs=k,
        **more,
    )
    events = {}
    async for event in engine.submit(request):
        events[event.index] = events.get(event.index, TokenEvent(event.index, "", 0)) + event
    return [events[index] for index in sorted(events)]


def check(event, logprobs, prompt, k):
    assert [score.token_id for score in event.prompt_logprobs] == list(prompt[1:])
    values = torch.tensor([score.logprob for score in event.prompt_logprobs])
    tokens = torch.tensor(prompt[1:], dtype=torch.long)
    close(values, logprobs.gather(1, tokens[:, None])[:, 0])
    assert {len(score.top) for score in event.prompt_logprobs} <= {k}
    for score, row in zip(event.prompt_logprobs, logprobs, strict=True):
        likeliest = torch.tensor([value for _, value in score.top])
        close(likeliest, row.topk(k).values)
        close(likeliest, row[[token for token, _ in score.top]])
        assert likeliest.tolist() == sorted(likeliest.tolist(), reverse=True)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize(("family", "name"), CASES)
async def test_scores_are_those_of_one_plain_forward_pass(family, name, start):
    engine, watched = start(family, name)
    plain = [(await run(engine, prompt))[0].text for prompt in prompts()]
    asked = [(prompt, k, tokens) for prompt in prompts() for k, tokens in ((3, 0), (None, 6), (0, 6))]
    watched.rows.clear()
    busy = await asyncio.gather(*(run(engine, *one) for one in asked))
    for (prompt, k, tokens), [event] in zip(asked, busy, strict=True):
        assert event.text == (plain[prompts().index(prompt)] if tokens else "")
        assert event.finish_reason == "length" or tokens
        if k is not None:
            check(event, expected(family, prompt), prompt, k)
    # Logits for all of a long prompt would be more than memory holds, with a large vocabulary.
    assert max(watched.rows) <= MAX_SCORED + max(ROWS, engine.scheduler._cheap_tokens)
    [alone] = await run(engine, prompts()[0], 5, 0)
    check(alone, expected(family, prompts()[0]), prompts()[0], 5)
    assert alone.cached_tokens == 0
