"""Without these tests evaluations could rank answers by wrong numbers. Scores of a prompt must be those of one plain
forward pass in fp32, with every runner and in any batch."""

import asyncio
import copy
import itertools
from functools import cache

import pytest
import torch
from families import FAMILIES, build

from run_gpt.config import EngineConfig, ModelConfig
from run_gpt.engine.engine import BatchEngine
from run_gpt.engine.request import Request, TokenEvent
from run_gpt.engine.runners.choice import choose_runner
from run_gpt.engine.runners.native.binding import Kernels
from run_gpt.engine.runners.native.build import built, unsupported
from run_gpt.engine.runners.native.weights import PackedWeights
from run_gpt.engine.scheduler import MAX_SCORED
from run_gpt.errors import InternalError, InvalidRequest
from run_gpt.local.kernels import start_kernels
from run_gpt.local.launch import start_engine
from run_gpt.models import load
from run_gpt.models.cache import cache_root

RUNNERS = {"native": ("native", "generic"), "generic": ("generic",), "alone": ("alone",)}
CASES = [(family, runner) for family in FAMILIES for runner in RUNNERS[FAMILIES[family].runner]]
CASES += [(family, "fast") for family in ("llama", "mistral", "qwen2", "qwen3")]
# One family for each runner, for tests that do not depend on the family.
SOME = [("llama", "native"), ("llama", "fast"), ("pythia", "generic"), ("rwkv-raven", "alone")]
TEXT = " ".join(f"Item {i} of the list costs {i * 37 % 101} euros." for i in range(30))
ROWS = 4
NUMBERS = itertools.count()
LENGTHS = (300, 1, 129, 5, 40, 2)
"""Lengths of prompts: several parts, nothing to score, a last token alone, and some that share a part."""


@cache
def model_of(family):
    return build(FAMILIES[family])


@cache
def prompts():
    generator = torch.Generator().manual_seed(3)
    return [tuple(torch.randint(3, 128, (length,), generator=generator).tolist()) for length in LENGTHS]


@cache
def expected(family, prompt):
    """Return the log-probabilities of the whole vocabulary at the position of each token but the first."""
    with torch.inference_mode():
        return model_of(family)(torch.tensor([prompt]), use_cache=False).logits[0, :-1].float().log_softmax(-1)


class Watched:
    """Runner wrapper that records the rows of logits of each step, and calls a test's function between steps."""

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
    """Return `start(family, runner)`, which gives an engine and its runner's `Watched`."""
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
    """Run a request; returns the joined events of each sequence."""
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
    # With a large vocabulary, logits for all of a long prompt would not fit the memory.
    assert max(watched.rows) <= MAX_SCORED + max(ROWS, engine.scheduler._cheap_tokens)
    [alone] = await run(engine, prompts()[0], 5, 0)
    check(alone, expected(family, prompts()[0]), prompts()[0], 5)
    assert alone.cached_tokens == 0


@pytest.mark.parametrize(("family", "name"), SOME)
@pytest.mark.parametrize("reuse", [True, False])
async def test_each_sequence_of_a_request_gives_the_scores(family, name, reuse, start):
    engine, _ = start(family, name, reuse_prefixes=reuse)
    prompt = prompts()[0]
    [plain] = await run(engine, prompt)
    both, _ = await asyncio.gather(run(engine, prompt, 2, sequences=2), run(engine, prompts()[4], 1))
    for event in both:
        check(event, expected(family, prompt), prompt, 2)
        assert event.text == plain.text


@pytest.mark.parametrize(("family", "name"), SOME)
async def test_a_request_that_goes_in_the_middle_of_its_prompt_leaves_nothing_behind(family, name, start):
    engine, watched = start(family, name)
    prompt = prompts()[0]
    request = Request(id="gone", prompt_ids=prompt, max_new_tokens=1, prompt_logprobs=0)
    watched.between = lambda: engine.abort("gone") if len(watched.rows) == 2 else None
    gone = asyncio.create_task(anext(engine.submit(request), None))
    [event] = await run(engine, prompts()[2], 2)
    check(event, expected(family, prompts()[2]), prompts()[2], 2)
    gone.cancel()
    watched.between = None
    [event] = await run(engine, prompt, 2)
    check(event, expected(family, prompt), prompt, 2)
    assert engine.stats().running == 0


@pytest.mark.parametrize(("first", "second"), [("generic", "native"), ("fast", "generic")])
async def test_scores_go_on_when_another_runner_takes_over_in_the_middle(first, second, start):
    engine, watched = start("llama", first)
    other = runner_of("llama", second)
    prompt = prompts()[0]
    waiting = asyncio.create_task(run(engine, prompt, 2))
    replaced = []

    def replace():
        if len(watched.rows) == 2 and not replaced:
            replaced.append(asyncio.run_coroutine_threadsafe(asyncio.to_thread(engine.replace_runner, other), loop))
            with engine._changed:  # it is done when this step has ended
                assert engine._changed.wait_for(lambda: engine._tasks, 10)

    loop = asyncio.get_running_loop()
    watched.between = replace
    [event] = await waiting
    assert len(watched.rows) == 2
    assert engine._runner is other
    check(event, expected("llama", prompt), prompt, 2)


@pytest.mark.parametrize(("family", "name"), SOME)
async def test_a_model_that_gives_no_number_ends_the_request_alone(family, name, start, monkeypatch):
    right, broken = prompts()[4], build(FAMILIES[family])
    with torch.no_grad():
        broken.get_input_embeddings().weight[200] = torch.nan  # a token that no prompt here has
    wanted = expected(family, right)
    monkeypatch.setitem(globals(), "model_of", lambda _: broken)
    engine, _ = start(family, name)
    failing, [event] = await asyncio.gather(
        run(engine, (*right, 200, *right), 0, 0), run(engine, right, 1), return_exceptions=True
    )
    assert isinstance(failing, InternalError)
    assert "gave NaN for its logits" in str(failing)
    check(event, wanted, right, 1)


async def test_a_state_space_model_keeps_no_more_logits_than_it_says(start, monkeypatch):
    """Check the kept logits. Prompts run whole, and logits are kept for later parts, but only up to a limit."""
    monkeypatch.setattr("run_gpt.engine.runners.alone.AHEAD", 140)
    engine, watched = start("mamba", "alone")
    kept = []
    watched.between = lambda: kept.append(sum(len(logits) for _, logits in engine._runner._ahead.values()))
    events = await asyncio.gather(*(run(engine, prompt, 2, 3) for prompt in prompts()))
    for prompt, [event] in zip(prompts(), events, strict=True):
        check(event, expected("mamba", prompt), prompt, 2)
    assert 0 < max(kept) <= 2 * 140
    assert not engine._runner._ahead


async def test_the_default_model_scores_a_text_as_its_plain_forward_pass_does():
    """Check the native runner, if available, with a vocabulary of 49,152. The answer is the same as without scores."""
    loaded = load(ModelConfig(precision="fp32", device="cpu"))
    prompt = tuple(loaded.tokenizer(TEXT)["input_ids"])
    with torch.inference_mode():
        ids = torch.tensor([prompt])
        logprobs = loaded.model(ids).logits[0, :-1].log_softmax(-1)
        answer = loaded.model.generate(ids, do_sample=False, max_new_tokens=8)[0, len(prompt) :].tolist()
    config = EngineConfig(max_running=ROWS)
    compiled = start_kernels(config, "cpu", cache_root() / "kernels")
    if compiled is not None:
        compiled.result()
    engine = start_engine(loaded, lambda ids: "".join(f"{i} " for i in ids), config, compiled)
    try:
        both = await asyncio.gather(run(engine, prompt, 5, 8), run(engine, prompt, 0, 0), run(engine, prompts()[4]))
    finally:
        engine.shutdown()
    for [event], k in zip(both, (5, 0), strict=False):
        check(event, logprobs, prompt, k)
    assert both[0][0].text == "".join(f"{i} " for i in answer)
    assert len(prompt) > 2 * MAX_SCORED


async def test_what_beam_search_cannot_do_is_refused(start):
    engine, _ = start("llama", "generic")
    for more in ({"k": 0}, {"tokens": 0}):
        with pytest.raises(InvalidRequest, match="num_beams = 2"):
            await run(engine, prompts()[3], num_beams=2, **more)
