"""Rotary embeddings that depend on the text's length: an answer must be that of `model.generate` alone.

Without this a user of Phi-3 would get other answers beside a longer request, after it, or for a prompt in parts.
"""

import asyncio
import copy
from functools import cache

import pytest
import torch
from families import FAMILIES, Family, build

from run_gpt.config import EngineConfig
from run_gpt.engine.engine import BatchEngine
from run_gpt.engine.request import Request
from run_gpt.engine.runners.choice import choose_runner
from run_gpt.engine.runners.generic import GenericRunner

SWITCH = 32
LLAMA = FAMILIES["llama"].config
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + i / 16 for i in range(8)],
    "long_factor": [1.0 + 2 * i for i in range(8)],
    "original_max_position_embeddings": SWITCH,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
PHI = {**LLAMA, "max_position_embeddings": 256, "original_max_position_embeddings": SWITCH, "eos_token_id": None}
FREE = {**LLAMA, "max_position_embeddings": 256, "eos_token_id": None}
EARLY = {**LLAMA, "max_position_embeddings": SWITCH, "eos_token_id": None}
KINDS = {
    "phi-3": Family("Phi3", {**PHI, "rope_parameters": LONGROPE}),
    "phi-3.5-moe": Family(
        "Phimoe",
        {**PHI, "rope_parameters": {**LONGROPE, "short_mscale": 1.2, "long_mscale": 1.3}, "num_local_experts": 4},
    ),
    "llama-longrope": Family("Llama", {**FREE, "rope_parameters": LONGROPE}),
    "llama-dynamic": Family("Llama", {**EARLY, "rope_parameters": DYNAMIC}),
    "neox-dynamic": Family("GPTNeoX", {**EARLY, "rope_parameters": DYNAMIC}),
}
# Below the switch, at it, across it while answering, and beyond it.
PROMPTS = (5, 20, 28, 31, 32, 33, 40, 61)
NEW_TOKENS = 14


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return build(KINDS[request.param])


def prompts():
    generator = torch.Generator().manual_seed(3)
    shared = torch.randint(3, 128, (10,), generator=generator).tolist()
    return [shared[:n] + torch.randint(3, 128, (max(0, n - 10),), generator=generator).tolist() for n in PROMPTS]


def generate(model, prompt, tokens=NEW_TOKENS, **options):
    """Return `generate`'s tokens by a copy of the model, which has seen no other text; made once for all runners."""
    return _generated(model, tuple(prompt), tokens, **options)


@cache
def _generated(model, prompt, tokens, **options):
    fresh, ids = copy.deepcopy(model), torch.tensor([prompt])
    out = fresh.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, **options)
    return out[0, ids.shape[1] :].tolist()


async def run(engine, name, prompt, tokens=NEW_TOKENS, **more):
    text = ""
    async for event in engine.submit(Request(id=name, prompt_ids=tuple(prompt), max_new_tokens=tokens, **more)):
        text += event.text
    return [int(token) for token in text.split()]


@pytest.fixture(params=["generic", "alone"])
def engine(model, request):
    config = EngineConfig(max_running=3, max_step_tokens=16, runner=request.param)
    engine = BatchEngine(choose_runner(copy.deepcopy(model), config), lambda ids: "".join(f"{i} " for i in ids), config)
    yield engine
    engine.shutdown()
    engine.scheduler.check()


async def test_a_busy_batch_gives_the_tokens_of_generate_alone(model, engine):
    alone = [generate(model, prompt) for prompt in prompts()]
    busy = await asyncio.gather(*(run(engine, str(i), prompt) for i, prompt in enumerate(prompts())))
    assert busy == alone


async def test_what_was_kept_gives_the_tokens_of_generate_alone(model, engine):
    """Check prompts that continue others, on the same side of the switch and across it, and shorter ones after."""
    for i, prompt in enumerate(prompts()[2::2]):
        answer = await run(engine, f"{i}", prompt)
        turns = [prompt, prompt + answer + [5, 6, 7], [*prompt[:-2], 9], [*prompt[: len(prompt) // 2], 4, 8]]
        alone = [generate(model, turn) for turn in turns]
        for j, turn in enumerate(turns):
            assert await run(engine, f"{i} {j}", turn) == alone[j], (len(prompt), j)
        assert await asyncio.gather(*(run(engine, f"{i} {j} busy", t) for j, t in enumerate(turns))) == alone


async def test_right_and_wrong_drafts_give_the_tokens_of_generate_alone(model, engine, monkeypatch):
    texts = prompts()[2:5]
    alone = [generate(model, prompt) for prompt in texts]

    def draft(drafts, token_ids, most):
        known = next(p + a for p, a in zip(texts, alone, strict=True) if p == [*token_ids[: len(p)]])
        right = known[len(token_ids) : len(token_ids) + max(0, min(most, 3))]
        return (*right[:-1], right[-1] ^ len(token_ids) % 2) if right else ()

    monkeypatch.setattr("run_gpt.engine.draft.PromptLookup.draft", draft)
    for i, prompt in enumerate(texts):
        assert await run(engine, str(i), prompt) == alone[i]
    assert await asyncio.gather(*(run(engine, f"{i} busy", p) for i, p in enumerate(texts))) == alone


async def test_vectors_and_scores_are_those_of_the_whole_text(model, engine):
    """Check a text beyond the switch, in parts, after a shorter one with the same beginning."""
    text = prompts()[-1]
    await run(engine, "before", text[:20])
    with torch.inference_mode():
        states = copy.deepcopy(model).base_model(torch.tensor([text])).last_hidden_state[0]
        logprobs = copy.deepcopy(model)(torch.tensor([text])).logits[0].log_softmax(-1)
    for pooling, expected in (("last", states[-1]), ("mean", states.sum(0))):
        request = Request(id=pooling, prompt_ids=tuple(text), max_new_tokens=0, pooling=pooling)
        found = [event.embedding async for event in engine.submit(request)][-1]
        torch.testing.assert_close(torch.tensor(found), expected / expected.norm(), rtol=1e-3, atol=1e-3)
    request = Request(id="scores", prompt_ids=tuple(text), max_new_tokens=0, prompt_logprobs=1)
    scores = [event.prompt_logprobs async for event in engine.submit(request)][-1]
    expected = [float(logprobs[i, token]) for i, token in enumerate(text[1:])]
    assert [score.logprob for score in scores] == pytest.approx(expected, abs=1e-3)


async def test_beam_search_beside_a_batch_is_that_of_generate(model, engine):
    prompt = prompts()[2]
    theirs = generate(model, prompt, num_beams=3, early_stopping=True, length_penalty=1.0)
    request = Request(id="b", prompt_ids=tuple(prompt), max_new_tokens=NEW_TOKENS, num_beams=3)
    other = asyncio.create_task(run(engine, "long", prompts()[-1], 40))
    text = "".join([event.text async for event in engine.submit(request)])
    assert [int(token) for token in text.split()] == theirs
    assert await other == generate(model, prompts()[-1], 40)


def test_the_runner_of_such_models_is_the_generic_one(model):
    assert type(choose_runner(copy.deepcopy(model), EngineConfig())) is GenericRunner
