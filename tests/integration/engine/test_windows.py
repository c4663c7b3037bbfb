"""Without these tests a sequence could attend to overwritten keys once it is longer than its layers' rings."""

import asyncio
from functools import cache

import pytest
import torch
import transformers
from families import CONTEXT, FAMILIES, build
from plain_run import ScheduledTokens

from run_gpt.config import EngineConfig, windows
from run_gpt.engine.engine import BatchEngine
from run_gpt.engine.request import Request
from run_gpt.engine.runners.native.binding import Kernels
from run_gpt.engine.runners.native.build import built, unsupported
from run_gpt.engine.runners.native.families import shape_of
from run_gpt.engine.runners.native.runner import NativeRunner
from run_gpt.engine.runners.native.weights import PackedWeights
from run_gpt.engine.runners.native.windows import ring_of
from run_gpt.engine.slots import Copy
from run_gpt.models.cache import cache_root
from run_gpt.models.estimate import windows_of

pytestmark = pytest.mark.skipif(unsupported() is not None, reason=str(unsupported()))
RING = 128
"""Size of the rings here: a window of 8, and 16 tokens of a step, in whole blocks."""
LONG = 10 * RING
"""Context of the models with a wide window."""


@pytest.fixture(autouse=True)
def _small_rings(monkeypatch):
    monkeypatch.setattr(windows, "BACK", 16)


@cache
def kernels():
    return Kernels(built(cache_root() / "kernels"))


@cache
def family(name):
    return build(FAMILIES[name])


def native(model, precision="fp32", **config):
    return NativeRunner(model, PackedWeights.of(model, kernels(), precision), EngineConfig(**config))


@pytest.fixture(params=["mistral-v0.1", "gemma-2", "gemma-3", "olmo-3", "starcoder-2"])
def model(request):
    return family(request.param)


@pytest.fixture
def engine(model):
    config = EngineConfig(max_running=3, max_step_tokens=16)
    engine = BatchEngine(
        native(model, max_running=3, max_step_tokens=16), lambda i: "".join(f"{n} " for n in i), config
    )
    assert engine.scheduler.slots.ring.size == RING
    yield engine
    engine.shutdown()
    engine.scheduler.check()


def tokens(count, seed=1, below=128):
    return tuple(torch.randint(3, below, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


def generate(model, prompt, count):
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count)
    answer = out[0, len(prompt) :].tolist()
    return answer[: answer.index(2)] if 2 in answer else answer


async def run(engine, name, prompt, count, **more):
    """Return the answers' tokens without the end, and the number of tokens that the first one reused."""
    request = Request(id=name, prompt_ids=tuple(prompt), max_new_tokens=count, **more)
    texts, reused = [""] * request.sequences, 0
    async for event in engine.submit(request):
        texts[event.index] += event.text
        reused = event.cached_tokens if event.index == 0 else reused
    answers = [[int(token) for token in text.split()] for text in texts]
    return [answer[: answer.index(2)] if 2 in answer else answer for answer in answers], reused


async def test_a_busy_batch_beyond_the_rings_gives_the_tokens_of_generate_alone(model, engine):
    """Check prompts that end before, at and after the end of a ring, and one that fills several; they repeat a part, so
    that there are drafts.
    """
    texts = [tokens(9, i) * 30 for i in range(4)]
    texts = [text[:count] for text, count in zip(texts, (RING - 20, RING - 1, RING + 1, 250), strict=True)]
    alone = [[generate(model, text, 30)] for text in texts]
    busy = await asyncio.gather(*(run(engine, str(i), text, 30) for i, text in enumerate(texts)))
    assert [answers for answers, _ in busy] == alone
    assert (await run(engine, "alone", texts[1], 30))[0] == alone[1]  # it has more drafts


async def test_rejected_drafts_across_the_end_of_a_ring_leave_the_windows_whole(model, engine, monkeypatch):
    prompt = tokens(RING - 12)
    alone = generate(model, prompt, 40)

    def draft(drafts, token_ids, most):
        right = alone[len(token_ids) - len(prompt) :][: max(0, most - 1)]
        return (*right[:-1], right[-1] ^ 1) if right else ()

    monkeypatch.setattr("run_gpt.engine.draft.PromptLookup.draft", draft)
    assert (await run(engine, "a", prompt, 40))[0] == [alone]
    stats = engine.stats()
    assert (0 < stats.accepted_tokens < stats.drafted_tokens) or len(alone) < 4


async def test_a_prefix_is_reused_while_its_window_is_in_the_ring(model, engine):
    """Check one that continues the answer, one whose end differs, and one whose prefix ended too long ago."""
    prompt = tokens(200)
    answer = generate(model, prompt, 12)
    await run(engine, "first", prompt, 12)
    turns = [(*prompt, *answer, 5, 6, 7), (*prompt[:180], 9, 8), (*prompt[:100], 9, 8)]
    for i, (turn, least, most) in enumerate(zip(turns, (199, 180, 0), (215, 180, 0), strict=True)):
        ours, reused = await run(engine, str(i), turn, 12)
        assert ours == [generate(model, turn, 12)]
        assert least <= reused <= most


async def test_every_answer_of_a_request_beyond_the_ring_is_that_of_generate(model, engine):
    prompt = tokens(190, 5)
    ours, _ = await run(engine, "n", prompt, 12, sequences=3)
    assert ours == [generate(model, prompt, 12)] * 3
    assert engine.stats().cached_tokens == 2 * (len(prompt) - 1)


def wide(window, heads=2):
    """Return a model with a window in every second layer, and with a context of ten rings."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 200, "head_dim": 32}
    config = transformers.Gemma2Config(
        **sizes,
        num_attention_heads=4,
        num_key_value_heads=heads,
        sliding_window=window,
        max_position_embeddings=LONG,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.dim() > 1 else 1)
    return model


def steps(runner, slot, ids, sizes, start=0):
    """Return the logits of all tokens from `start` on, which run in parts of these sizes, and of one at the end."""
    out, at = [], start
    for size in (*sizes, *[1] * (len(ids) - start - sum(sizes))):
        out.append(runner.forward([ScheduledTokens(slot, at, ids[at : at + size], size)]).clone())
        at += size
    return torch.cat(out)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_long_row_is_the_same_to_the_last_bit_on_any_threads_and_with_any_neighbours(precision, heads, monkeypatch):
    """Check rows of several parts, which several threads share, in a ring that has turned."""
    model, ids, other = wide(600, heads), tokens(LONG, 1, 200), tokens(60, 2, 200)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = native(model, precision, max_running=3, max_step_tokens=64)
    assert alone.ring.size == 768
    whole = steps(alone, 0, ids, [64] * 20)
    if precision == "fp32":
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).logits[0].float()
        assert (whole - expected).norm() <= 1e-5 * expected.norm()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    runner = native(model, precision, max_running=3, max_step_tokens=64)
    monkeypatch.setattr("run_gpt.engine.runners.native.pace.MOST_TOKENS", 0)  # it never tries one thread alone
    assert torch.equal(steps(runner, 0, ids, [50] * 20), whole)
    runner.copy([Copy(0, 1, LONG - 20)])
    runner.forward([ScheduledTokens(0, LONG - 30, other[:20], 1)])  # a draft that is wrong
    steps(runner, 2, other, [30])
    for i in range(LONG - 20, LONG):
        rows = [ScheduledTokens(slot, at, (token,), 1) for slot, at, token in ((2, 60 + i - LONG, 5), (1, i, ids[i]))]
        assert torch.equal(runner.forward(rows)[1], whole[i])
    assert torch.equal(steps(runner, 0, ids, [9], LONG - 30), whole[LONG - 30 :])


def test_a_step_longer_than_a_ring_can_hold_is_refused():
    runner = native(family("mistral-v0.1"), max_running=1, max_step_tokens=16)
    with pytest.raises(IndexError, match="100 tokens in a step, of 56"):
        runner.forward([ScheduledTokens(0, 0, tokens(100), 1)])


def test_a_cache_with_windows_takes_the_memory_of_its_windows(monkeypatch):
    """Check what a context of ten windows takes, in a model with a window in two of three layers."""
    monkeypatch.setattr(windows, "BACK", 64)
    bounded, whole = (native(wide(window), "bf16", max_running=2, max_step_tokens=64) for window in (128, None))
    sizes = [sum(memory.size for memory in runner._cache) for runner in (bounded, whole)]
    ring = 128 + 64 + 64
    assert bounded.ring.size == ring
    assert whole.ring is None
    assert sizes[1] == 2 * LONG * whole.cache_bytes_per_token
    assert sizes[0] * 3 * LONG == sizes[1] * (LONG + 2 * ring)
    assert bounded.cache_bytes_per_token == whole.cache_bytes_per_token
    counted = 2 * bounded.ring.cost(LONG) * bounded.cache_bytes_per_token  # rounded up to whole tokens
    assert 0 <= counted - sizes[0] <= 2 * bounded.cache_bytes_per_token


def test_a_window_as_long_as_the_context_needs_no_ring():
    assert native(family("gemma-2"), max_running=1, max_context=RING).ring is None
    assert native(family("gemma-2"), max_running=1, max_step_tokens=16, max_context=CONTEXT).ring.size == RING


@pytest.mark.parametrize("name", ["Mistral", "Phi3", "Starcoder2", "Gemma2", "Gemma3Text", "Olmo3"])
def test_the_estimate_of_a_family_has_the_windows_of_its_runner(name):
    config = getattr(transformers, f"{name}Config")(num_hidden_layers=20, sliding_window=64)
    shape = shape_of(config)
    held = {**config.to_dict(), "layer_types": None}
    ring = ring_of(shape, 10**6, 512)
    assert windows_of(held) == (ring.layers / ring.all_layers, 64)
    assert ring.size == windows.ring_size(64, EngineConfig().max_step_tokens)
