"""Parity: in fp32 and greedy, a request in a busy batch must give the tokens of `model.generate` alone."""

import asyncio
import copy
from functools import cache

import pytest
import torch
from families import FAMILIES, build

from run_gpt.config import EngineConfig
from run_gpt.engine.engine import BatchEngine
from run_gpt.engine.request import Request, SamplingParams
from run_gpt.engine.runners.alone import AloneRunner
from run_gpt.engine.runners.choice import choose_runner
from run_gpt.engine.runners.generic import GenericRunner
from run_gpt.engine.runners.llama import LlamaRunner, fits
from run_gpt.engine.runners.memory import cache_bytes_per_token
from run_gpt.engine.runners.native.binding import Kernels
from run_gpt.engine.runners.native.build import built, unsupported
from run_gpt.engine.runners.native.runner import fits as fits_native
from run_gpt.engine.runners.native.weights import PackedWeights
from run_gpt.errors import SetupError
from run_gpt.models.cache import cache_root

# One for each kind of attention, positions and runner; test_families.py tests all families, from their files.
KINDS = (
    *("llama", "gpt-oss", "qwen3", "pythia", "gpt-j", "opt", "bloom", "mpt-7b-chat"),
    *("mistral-v0.1", "gemma-2", "rwkv-raven", "mamba"),
)
OTHERS = [name for name, family in FAMILIES.items() if family.runner == "native" and name not in KINDS]
"""Other families of the native runner."""
FAST = ("llama", "llama-3", "vicuna", "qwen2", "qwen3", "mistral")
"""Families of the fast runner."""
REQUESTS = 7
NEW_TOKENS = 12


def prompts():
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 128, (3 + 5 * i,), generator=generator).tolist() for i in range(REQUESTS)]


def generate(model, prompt, tokens=NEW_TOKENS, **options):
    """Return transformers' tokens of each sequence; an answer is made once for all runners."""
    return _generated(model, tuple(prompt), tokens, **options)


@cache
def _generated(model, prompt, tokens, **options):
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, **options
        )
    return out[:, ids.shape[1] :].tolist()


async def run(engine, name, prompt, tokens=NEW_TOKENS, **more):
    text = ""
    request = Request(id=name, prompt_ids=tuple(prompt), max_new_tokens=tokens, **more)
    async for event in engine.submit(request):
        text += event.text
    return [int(token) for token in text.split()]


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return build(FAMILIES[request.param])


def start(model, **options):
    config = EngineConfig(max_running=3, max_step_tokens=16, **options)
    # A copy, since the fast runners take the model's layers over.
    own = copy.deepcopy(model)
    runner = choose_runner(own, config, packed=packed(own) if options["runner"] == "native" else None)
    if type(runner) is LlamaRunner and options["runner"] == "fast":
        # As on a GPU: sequences attend together, and each has several blocks.
        runner._together, runner._cache._block = True, 4
    return BatchEngine(runner, lambda ids: "".join(f"{i} " for i in ids), config)


@cache
def kernels():
    if unsupported() is not None:
        pytest.skip(str(unsupported()))
    return Kernels(built(cache_root() / "kernels"))


def packed(model):
    return PackedWeights.of(model, kernels(), "fp32")


def skip_what_does_not_fit(model, runner):
    if runner == "generic" and model._is_stateful:
        pytest.skip("it has no key-value cache")
    if not {"native": fits_native, "fast": fits}.get(runner, lambda model: True)(model):
        pytest.skip("it is not one of this runner's families")


@pytest.fixture(params=["auto", "native", "fast", "generic", "alone", "plain"])
def engine(model, request):
    """Start an engine with each runner, with reuse and speculation; `plain` is without both."""
    runner = "auto" if request.param == "plain" else request.param
    skip_what_does_not_fit(model, runner)
    on = request.param != "plain"
    engine = start(model, runner=runner, reuse_prefixes=on, speculate=on)
    yield engine
    engine.shutdown()
    engine.scheduler.check()


async def test_a_busy_batch_gives_the_tokens_of_generate_alone(model, engine):
    texts = prompts()
    alone = [generate(model, prompt)[0] for prompt in texts]
    assert len({tuple(tokens) for tokens in alone}) > 1
    # More requests than slots, so that sequences join while others run, and leave at different times.
    busy = await asyncio.gather(*(run(engine, str(i), prompt) for i, prompt in enumerate(texts)))
    assert [_until_end(tokens) for tokens in busy] == [_until_end(tokens) for tokens in alone]


async def test_every_sequence_of_a_request_gives_the_tokens_of_generate_alone(model, engine):
    """Check sequences that share one run of the prompt, in several steps, beside another request."""
    prompt = prompts()[-1]
    request = Request(id="n", prompt_ids=tuple(prompt), max_new_tokens=NEW_TOKENS, sequences=2)
    other = asyncio.create_task(run(engine, "other", prompts()[0]))
    texts = ["", ""]
    async for event in engine.submit(request):
        texts[event.index] += event.text
    await other
    alone = _until_end(generate(model, prompt)[0])
    assert [_until_end([int(token) for token in text.split()]) for text in texts] == [alone, alone]


async def test_what_was_kept_of_earlier_rows_gives_the_tokens_of_generate_alone(model, engine):
    """Check a repeated prompt, one that continues its answer and one that differs near its end, together and alone."""
    for i, prompt in enumerate(prompts()[4:]):
        answer = generate(model, prompt)[0]
        turns = [prompt, prompt + answer + [5, 6, 7], [*prompt[:-2], 9]]
        alone = [_until_end(generate(model, turn)[0]) for turn in turns]
        await run(engine, f"first {i}", prompt)
        busy = await asyncio.gather(*(run(engine, f"{i} {j}", turn) for j, turn in enumerate(turns)))
        assert [_until_end(tokens) for tokens in busy] == alone
        for j, turn in enumerate(turns):
            assert _until_end(await run(engine, f"{i} {j} alone", turn)) == alone[j]
    assert (engine.stats().cached_tokens > 0) == engine.scheduler._reuse_prefixes


async def test_drafts_give_the_tokens_of_generate_alone(model, engine):
    """Check repetitive answers, as such models give: one sequence, two, and more than get drafts."""
    texts = [prompt[:6] * 2 for prompt in prompts()[3:]]
    alone = [_until_end(generate(model, prompt, tokens=40)[0]) for prompt in texts]
    for together in (1, 2, 4):
        busy = await asyncio.gather(*(run(engine, f"{together} {i}", p, 40) for i, p in enumerate(texts[:together])))
        assert [_until_end(tokens) for tokens in busy] == alone[:together]
    assert (engine.stats().drafted_tokens > 0) == (engine.scheduler._cheap_tokens > 1)


@pytest.mark.parametrize("name", OTHERS)
async def test_kept_tokens_and_drafts_of_every_native_family_give_the_tokens_of_generate_alone(name):
    model = build(FAMILIES[name])
    engine = start(model, runner="native")
    try:
        prompt = prompts()[1][:6] * 2
        first = generate(model, prompt, tokens=40)[0]
        turn = prompt + first + [5, 6, 7]
        alone = [_until_end(tokens) for tokens in (first, generate(model, turn)[0])]
        assert _until_end(await run(engine, "first", prompt, 40)) == alone[0]
        busy = await asyncio.gather(run(engine, "again", prompt, 40), run(engine, "turn", turn))
        assert [_until_end(tokens) for tokens in busy] == alone
        assert engine.stats().cached_tokens > 0
        assert engine.stats().drafted_tokens > 0 or name == "granite"  # its random answers repeat nothing
    finally:
        engine.shutdown()


async def test_right_and_wrong_drafts_give_the_tokens_of_generate_alone(model, engine, monkeypatch):
    """Check drafts when every second one has a wrong last token."""
    texts = prompts()[:3]
    alone = [generate(model, prompt)[0] for prompt in texts]

    def draft(drafts, token_ids, most):
        known = next(
            p + a for p, a in zip(texts, alone, strict=True) if p + a[: len(token_ids) - len(p)] == [*token_ids]
        )
        right = known[len(token_ids) : len(token_ids) + max(0, min(most, 3))]
        return (*right[:-1], right[-1] ^ len(token_ids) % 2) if right else ()

    monkeypatch.setattr("run_gpt.engine.draft.PromptLookup.draft", draft)
    for together in (1, 2, 3):
        busy = await asyncio.gather(*(run(engine, f"{together} {i}", p) for i, p in enumerate(texts[:together])))
        assert [_until_end(tokens) for tokens in busy] == [_until_end(tokens) for tokens in alone[:together]]
    stats = engine.stats()
    assert (0 < stats.accepted_tokens < stats.drafted_tokens) == (engine.scheduler._cheap_tokens > 1)


async def test_penalties_give_the_tokens_of_generate_alone(model, engine):
    prompt = prompts()[2]
    sampling = SamplingParams(repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=5)
    ours = await run(engine, "a", prompt, sampling=sampling)
    theirs = generate(model, prompt, repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=5)[0]
    assert _until_end(ours) == _until_end(theirs)


def _until_end(tokens):
    return tokens[: tokens.index(2)] if 2 in tokens else tokens


@pytest.mark.parametrize("family", [name for name in FAMILIES if FAMILIES[name].runner != "alone"])
def test_the_size_of_a_tokens_cache_follows_from_the_configuration(family):
    """Check the size: if it were larger in fact, the engine would run more requests than fit the memory."""
    model = build(FAMILIES[family])
    with torch.inference_mode():
        cache = model(torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    assert cache_bytes_per_token(model) == sum(tensor.numel() * tensor.element_size() for tensor in tensors) // 3


# Loading marks LFM2 as a model with a state; its class does not.
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "lfm2"])
def test_the_fast_runner_is_chosen_where_it_is_right(family):
    model = build(FAMILIES[family])
    fast = fits(model)
    assert fast == (family in FAST)
    wanted = LlamaRunner if fast else AloneRunner if model._is_stateful else GenericRunner
    assert type(choose_runner(copy.deepcopy(model), EngineConfig())) is wanted
    if unsupported() is None:
        assert fits_native(model) == (FAMILIES[family].runner == "native")
    if not fast:
        with pytest.raises(SetupError, match="--runner fast"):
            choose_runner(model, EngineConfig(runner="fast"))
    if not fits_native(model):
        with pytest.raises(SetupError, match="--runner native"):
            choose_runner(model, EngineConfig(runner="native"))


async def test_beam_search_is_that_of_generate(model, engine):
    prompt = prompts()[1]
    options = {"early_stopping": True, "length_penalty": 0.5, "use_cache": model.config.model_type != "rwkv"}
    theirs = generate(model, prompt, num_beams=3, num_return_sequences=2, **options)
    request = Request(
        id="b", prompt_ids=tuple(prompt), max_new_tokens=NEW_TOKENS, num_beams=3, sequences=2, length_penalty=0.5
    )
    texts = {event.index: event.text async for event in engine.submit(request)}
    ours = [[int(token) for token in texts[i].split()] for i in range(2)]
    assert [_until_end(tokens) for tokens in ours] == [_until_end(tokens) for tokens in theirs]


def test_an_unknown_runner_is_refused(model):
    with pytest.raises(SetupError, match="'quick' is not one of auto, native"):
        choose_runner(model, EngineConfig(runner="quick"))
