"""Each served family must load from the hub's files and answer as transformers does, also beside other requests."""

import asyncio
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, build, copied_tokenizer, write_checkpoint

import run_gpt
from run_gpt.engine.runners.native.build import unsupported
from run_gpt.models import render_chat
from run_gpt.models.templates import PLAIN, find_template

NEW_TOKENS = 20
PROMPTS = (
    "In a village",
    "What is the capital of France? The cat asked for news, and every morning the miller said that the wind was good.",
    "def add(a, b): return",
    "every morning " * 5,
    "User: Every morning the cat asked for news.",
)
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "The wind was good."},
    {"role": "user", "content": "In a village?"},
]
RUNNERS = {"native": "NativeRunner", "generic": "GenericRunner", "alone": "AloneRunner"}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(family, tmp_path_factory.mktemp("families") / f"tiny-{family}")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="module")
def model(family: str, checkpoint: Path) -> Iterator[run_gpt.Model]:
    # The runner is named, since its build is then waited for; test_parity.py tests the choice of `auto`.
    runner = "native" if FAMILIES[family].runner == "native" and unsupported() is None else "auto"
    with opened(checkpoint, "fp32", runner=runner) as model:
        yield model


def opened(checkpoint: Path, precision: str, **options: Any) -> run_gpt.Model:
    """Open the model with few slots, so that sequences wait, join and leave, and with short engine steps."""
    return run_gpt.create_model(
        str(checkpoint), precision=precision, device="cpu", max_running=3, max_step_tokens=16, **options
    )


@lru_cache(1)
def original(family: str) -> Any:
    """Return the model as it was before it was written to disk."""
    return build(FAMILIES[family])


def generate(family: str, prompt: str, end_ids: tuple[int, ...], **options: Any) -> str:
    """Return transformers' answer to this prompt alone."""
    tokenizer = copied_tokenizer()
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    with torch.inference_mode():
        answer = original(family).generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=list(end_ids),
            **options,
        )[0, ids.shape[1] :]
    return str(tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("options", [{}, {"no_repeat_ngram_size": 2}], ids=["greedy", "no repetition"])
async def test_a_busy_batch_answers_as_generate_does_alone(
    family: str, model: run_gpt.Model, options: dict[str, Any]
) -> None:
    ends = model._engine._runner.end_ids  # type: ignore[attr-defined]
    alone = [generate(family, prompt, ends, **options) for prompt in PROMPTS]
    requests = [model.agenerate(prompt, max_new_tokens=NEW_TOKENS, **options) for prompt in PROMPTS]
    busy = await asyncio.gather(*requests)
    assert [answer.text for answer in busy] == alone
    assert len(set(alone)) > 1


def test_a_stream_is_the_answer(model: run_gpt.Model) -> None:
    for prompt in PROMPTS[:2]:
        answer = model.generate(prompt, max_new_tokens=NEW_TOKENS)
        chunks = list(model.generate_stream(prompt, max_new_tokens=NEW_TOKENS))
        assert "".join(chunk.text for chunk in chunks) == answer.text
        assert chunks[-1].choices[0].finish_reason == answer.choices[0].finish_reason


def test_it_chats(family: str, model: run_gpt.Model) -> None:
    answer = model.chat(CHAT, max_new_tokens=NEW_TOKENS)
    chunks = list(model.chat_stream(CHAT, max_new_tokens=NEW_TOKENS))
    assert "".join(chunk.text for chunk in chunks) == answer.text
    template = find_template(model.name, model.name, "moss" if family == "moss" else "any")
    tokenizer = copied_tokenizer()
    tokenizer.chat_template = FAMILIES[family].chat_template
    assert answer.usage.prompt_tokens == len(render_chat(tokenizer, CHAT, template))
    plain = FAMILIES[family].chat_template is None and template is PLAIN
    assert sum("no chat template" in note for note in model.notes) == plain


def test_the_runner_and_unusual_features_are_reported(family: str, model: run_gpt.Model) -> None:
    runner = FAMILIES[family].runner if unsupported() is None else FAMILIES[family].runner.replace("native", "fast")
    assert type(model._engine._runner).__name__ == {**RUNNERS, "fast": "LlamaRunner"}[runner]  # type: ignore[attr-defined]
    assert any("one after the other" in note for note in model.notes) == (runner == "alone")


# Limits of the mean shift of the likeliest tokens' log-probabilities against fp32, as a share of their range in fp32: 2
# to 4 times the measured shift.
MOVED = {"bf16": 0.06, "fp16": 0.01, "bit8": 0.1, "bit4": 0.8}


@pytest.mark.parametrize("precision", MOVED)
def test_it_answers_in_each_precision(family: str, checkpoint: Path, model: run_gpt.Model, precision: str) -> None:
    if precision not in FAMILIES[family].precisions:
        pytest.skip("see families.py")
    with opened(checkpoint, precision) as coarse:
        answer = coarse.generate(PROMPTS[1], max_new_tokens=6, min_new_tokens=6, logprobs=20)
    assert (coarse.precision, answer.usage.completion_tokens) == (precision, 6)
    found, exact = (
        likeliest(answer),
        likeliest(model.generate(PROMPTS[1], max_new_tokens=1, min_new_tokens=1, logprobs=20)),
    )
    if (family, precision) == ("mixtral", "bit4"):
        return  # such coarse inputs may select other experts, with other answers
    common = found.keys() & exact.keys()
    assert len(common) >= len(exact) / 2
    moved = sum(abs(found[token] - exact[token]) for token in common) / len(common)
    assert moved < MOVED[precision] * (max(exact.values()) - min(exact.values()))


def likeliest(answer: Any) -> dict[str, float]:
    """Return log-probabilities of the first token and its alternatives, without those that are parts of characters."""
    tokens = answer.choices[0].logprobs.content[0].top_logprobs
    return {token.token: token.logprob for token in tokens if "\ufffd" not in token.token}
