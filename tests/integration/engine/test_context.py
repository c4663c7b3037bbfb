"""Scaled contexts: a model must take texts as long as its rotary scaling allows, with `generate`'s tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, Family, build, copied_tokenizer
from transformers import AutoModelForCausalLM

from run_gpt.config import EngineConfig, ModelConfig
from run_gpt.engine.request import Request, SamplingParams
from run_gpt.engine.runners.native import structure
from run_gpt.engine.runners.native.build import unsupported
from run_gpt.errors import ModelLoadError
from run_gpt.local.launch import RunningModel, launch

BASE = 256
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": BASE}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    **{"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 64},
    **{"short_factor": [1.0] * 8, "long_factor": [1.0 + i for i in range(8)]},
}
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "linear": ("Llama", {"rope_parameters": LINEAR}, 1024),
    "linear, of old": ("Llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}, 1024),
    "dynamic": ("Llama", {"rope_parameters": {**LINEAR, "rope_type": "dynamic", "factor": 2.0}}, 512),
    "yarn": ("Qwen2", {"rope_parameters": YARN}, 1024),
    "yarn, scaled": ("Qwen3", {"rope_parameters": {**YARN, "original_max_position_embeddings": 64}}, 256),
    "llama3": ("Llama", {"rope_parameters": LLAMA3}, 256),
    "longrope": ("Phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64}, 256),
    "gemma": (
        "Gemma3Text",
        {"rope_parameters": {"sliding_attention": {"rope_type": "default"}, "full_attention": LINEAR}},
        256,
    ),
    "none": ("Llama", {}, 256),
}


def write(folder: Path, architecture: str, more: dict[str, Any]) -> Path:
    config = {**FAMILIES["llama"].config, "head_dim": 16, "max_position_embeddings": BASE, "eos_token_id": None, **more}
    model = build(Family(architecture, config))
    model.save_pretrained(folder)
    if "rope_scaling" in more:
        file = folder / "config.json"
        written = json.loads(file.read_text())
        del written["rope_parameters"]
        file.write_text(json.dumps({**written, **more, "rope_theta": 10000.0}))
    copied_tokenizer().save_pretrained(folder)
    return folder


def opened(folder: Path, **options: Any) -> RunningModel:
    return launch(ModelConfig(model_name=str(folder), precision="fp32", device="cpu"), EngineConfig(**options))


async def answer(model: RunningModel, ids: list[int], tokens: int) -> list[int]:
    request = Request(id="a", prompt_ids=tuple(ids), max_new_tokens=tokens, sampling=SamplingParams(logprobs=0))
    return [one.token_id async for event in model.engine.submit(request) for one in event.logprobs]


@pytest.mark.parametrize("name", CASES)
async def test_the_context_is_the_scaled_one_and_answers_in_it_are_those_of_generate(name: str, tmp_path: Path) -> None:
    architecture, more, context = CASES[name]
    write(tmp_path, architecture, more)
    ids = torch.randint(3, 128, (1, context - 20), generator=torch.Generator().manual_seed(1))
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    expected = reference.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16)
    model = opened(tmp_path, max_context=1024)
    try:
        assert model.context_length == context
        assert await answer(model, ids[0].tolist(), 16) == expected[0, ids.shape[1] :].tolist()
    finally:
        model.engine.shutdown()


@pytest.mark.skipif(unsupported() is not None, reason=str(unsupported()))
async def test_no_table_is_larger_than_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a context of a million tokens: its rotary table took gigabytes, which no estimate knew."""
    write(tmp_path, "Llama", {"max_position_embeddings": 2**20})
    monkeypatch.setattr(structure, "ANGLES_AT_ONCE", 128)
    ids = torch.randint(3, 128, (1, 140), generator=torch.Generator().manual_seed(1))
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    expected = reference.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=2)
    model = opened(tmp_path, runner="native", max_running=2)
    try:
        assert model.context_length == 2**20
        assert await answer(model, ids[0].tolist(), 2) == expected[0, 140:].tolist()
        assert model.engine._runner._angles._known == 256  # type: ignore[attr-defined]
    finally:
        model.engine.shutdown()


def test_where_nothing_chooses_the_frequencies_the_context_ends_before_others_count(tmp_path: Path) -> None:
    write(tmp_path, "Llama", {"rope_parameters": {**LINEAR, "rope_type": "dynamic"}})
    model = opened(tmp_path, compile=True)
    model.engine.shutdown()
    assert model.context_length == BASE
    assert "the context is 256 tokens, not 1024" in model.loaded.notes[-1]


def test_a_scaling_that_the_class_ignores_is_refused(tmp_path: Path) -> None:
    build(FAMILIES["gpt-j"]).save_pretrained(tmp_path)
    copied_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rope_scaling": {"type": "linear", "factor": 4.0}}))
    with pytest.raises(ModelLoadError, match=r"scales the rotary embedding \(linear\), which GPTJForCausalLM does not"):
        opened(tmp_path)
