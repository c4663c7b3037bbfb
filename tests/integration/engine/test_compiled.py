"""Without these tests a compiled model could give other answers, or be compiled again at each start."""

import asyncio
import os

import pytest
import torch
import transformers

from run_gpt.config import EngineConfig
from run_gpt.engine.request import Request
from run_gpt.engine.runners import compiled
from run_gpt.engine.runners.batches import CacheLayer
from run_gpt.engine.runners.native.build import unsupported
from run_gpt.errors import SetupError
from run_gpt.local.kernels import start_kernels
from run_gpt.local.launch import start_engine
from run_gpt.models import LoadedModel


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setattr(CacheLayer, "update", CacheLayer.update)  # put back at the end
    monkeypatch.setattr("torch._inductor.config.cpp.simdlen", 1)  # code without vectors is compiled sooner
    return tmp_path / "compiled"


@pytest.mark.skipif("compiler" in (unsupported() or ""), reason="no C++ compiler")
async def test_a_compiled_model_answers_as_itself(own_cache):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=256,
        eos_token_id=None,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    prompts, alone = [[5, 6, 7], [9, 8, 7]], []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=70)
        alone.append(out[0, len(prompt) :].tolist())
    loaded = LoadedModel(model, None, "tiny", 256, "fp32", "cpu", ())
    engine = start_engine(
        loaded, lambda ids: "".join(f"{i} " for i in ids), EngineConfig(compile=True, speculate=False), None
    )

    async def answer(i):
        request = Request(id=str(i), prompt_ids=tuple(prompts[i]), max_new_tokens=70)
        text = "".join([event.text async for event in engine.submit(request)])
        return [int(token) for token in text.split()]

    try:
        assert await asyncio.gather(answer(0), answer(1)) == alone
        scored = Request(id="scored", prompt_ids=tuple(range(5, 105)), max_new_tokens=0, prompt_logprobs=0)
        [event] = [event async for event in engine.submit(scored)]
        engine._runner._model.forward = type(model).forward.__get__(model)
        ids = torch.tensor([scored.prompt_ids])
        with torch.inference_mode():
            likely = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        assert [score.logprob for score in event.prompt_logprobs] == pytest.approx(likely.tolist(), abs=1e-3)
    finally:
        engine.shutdown()
    assert any(file.suffix == ".so" for file in own_cache.rglob("*"))  # kept for the next start


def test_what_cannot_be_compiled_says_so(tmp_path, monkeypatch):
    for runner in ("native", "fast", "alone"):
        with pytest.raises(SetupError, match=f"--compile is for the generic runner: leave --runner {runner}"):
            start_kernels(EngineConfig(runner=runner, compile=True), "cpu", tmp_path)
    assert start_kernels(EngineConfig(compile=True), "cpu", tmp_path) is None
    monkeypatch.setattr(compiled, "compiler", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SetupError, match=r"--compile: there is no C\+\+ compiler"):
        compiled.prepare_compiler(tmp_path)


def test_what_is_compiled_is_kept_in_the_model_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(compiled, "compiler", lambda: "g++")
    compiled.prepare_compiler(tmp_path)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)


def test_any_index_of_the_cpu_is_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr("run_gpt.local.kernels.unsupported", lambda source: "none here")
    with pytest.raises(SetupError, match="--runner native: none here"):
        start_kernels(EngineConfig(runner="native"), "cpu:0", tmp_path)
