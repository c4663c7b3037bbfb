"""The change of runner: without these tests a start could wait for a compiler, or the change could break answers."""

import asyncio
from concurrent.futures import Future

import pytest
import torch
import transformers

from run_gpt.config import EngineConfig
from run_gpt.engine.request import Request
from run_gpt.engine.runners.generic import GenericRunner
from run_gpt.engine.runners.llama import LlamaRunner
from run_gpt.engine.runners.native.build import unsupported
from run_gpt.engine.runners.native.runner import NativeRunner
from run_gpt.errors import SetupError
from run_gpt.local.kernels import packer_for, start_kernels
from run_gpt.local.launch import start_engine
from run_gpt.models import LoadedModel
from run_gpt.models.cache import cache_root

NEW_TOKENS = 120
CONFIG = EngineConfig(max_running=3)
pytestmark = pytest.mark.skipif(unsupported() is not None, reason=str(unsupported()))


def loaded():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        eos_token_id=None,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return LoadedModel(model, None, "tiny", 256, "fp32", "cpu", ())


def decode(ids):
    return "".join(f"{i} " for i in ids)


def kernels():
    return start_kernels(CONFIG, None, cache_root() / "kernels").result()


def request(name, prompt):
    return Request(id=name, prompt_ids=tuple(prompt), max_new_tokens=NEW_TOKENS)


async def answer(engine, name, prompt):
    return "".join([event.text async for event in engine.submit(request(name, prompt))])


async def test_the_native_runner_takes_over_in_the_middle_of_answers():
    model, soon = loaded(), Future()
    prompts = [[5, 6, 7], list(range(3, 60)), [9] * 20, [8, 9]]
    alone = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)
        alone.append(decode(out[0, len(prompt) :].tolist()))
    engine = start_engine(model, decode, CONFIG, soon)
    try:
        assert isinstance(engine._runner, GenericRunner)
        events = engine.submit(request("first", prompts[0]))
        begun = (await anext(events)).text  # it is in the middle now; one of the others waits
        others = [asyncio.create_task(answer(engine, str(i), p)) for i, p in enumerate(prompts[1:])]
        await asyncio.to_thread(soon.set_result, kernels())  # the callback runs there, until the runner is replaced
        assert isinstance(engine._runner, NativeRunner)
        assert engine.stats().running
        texts = [begun + "".join([event.text async for event in events]), *await asyncio.gather(*others)]
        assert texts == alone
        engine.scheduler.check()
    finally:
        engine.shutdown()


async def test_without_a_compiler_that_works_the_others_serve_on(caplog):
    soon = Future()
    engine = start_engine(loaded(), decode, CONFIG, soon)
    soon.set_exception(SetupError("no such option"))
    assert "no such option" in caplog.text
    assert len((await answer(engine, "a", [5, 6])).split()) == NEW_TOKENS
    engine.shutdown()
    engine = start_engine(loaded(), decode, CONFIG, soon)  # the kernels are known at the start: the fast runner serves
    assert isinstance(engine._runner, LlamaRunner)
    engine.shutdown()


def test_what_is_waited_for_must_come():
    failed = Future()
    failed.set_exception(SetupError("no such option"))
    with pytest.raises(SetupError, match="no such option"):
        start_engine(loaded(), decode, EngineConfig(runner="native"), failed)
    config = loaded().model.config
    with pytest.raises(SetupError, match="no such option"):
        packer_for(failed, EngineConfig(runner="native"))(config, "bit4", {})
    assert packer_for(failed, CONFIG)(config, "bit4", {}) is None  # then bitsandbytes or plain weights are used


def test_an_engine_that_ends_before_leaves_the_model_as_it_is():
    model, soon = loaded(), Future()
    engine = start_engine(model, decode, CONFIG, soon)
    engine.shutdown()
    soon.set_result(kernels())
    assert isinstance(model.model.lm_head, torch.nn.Linear)


def test_kernels_are_for_a_cpu_and_only_where_they_may_be_used(monkeypatch, caplog):
    folder = cache_root() / "kernels"
    assert start_kernels(EngineConfig(runner="generic"), None, folder) is None
    assert start_kernels(CONFIG, "cuda:0", folder) is None
    monkeypatch.setattr("run_gpt.local.kernels.unsupported", lambda source: "there is no C++ compiler: install g++")
    assert start_kernels(CONFIG, None, folder) is None
    assert "install g++" in caplog.text
    with pytest.raises(SetupError, match=r"--runner native: there is no C\+\+ compiler"):
        start_kernels(EngineConfig(runner="native"), None, folder)
