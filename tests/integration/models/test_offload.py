"""Without these tests, a model that is larger than its memory limit could fail or give other answers."""

import asyncio
import json

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from run_gpt.config import EngineConfig, ModelConfig
from run_gpt.engine.request import Request
from run_gpt.engine.runners.choice import choose_runner
from run_gpt.engine.runners.generic import GenericRunner
from run_gpt.engine.runners.lora import Lora
from run_gpt.errors import ModelLoadError, SetupError
from run_gpt.local.launch import start_engine
from run_gpt.models import fetch, load
from run_gpt.models.estimate import estimate_folder

PARTS = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}
MAPS = {
    "dict": {"device_map": PARTS},
    "all on disk": {"device_map": {"": "disk"}},
    "auto": {"device_map": "auto", "max_memory": {"cpu": "60KB"}},
    "sequential": {"device_map": "sequential", "max_memory": {"cpu": 60_000}},
    "balanced": {"device_map": "balanced", "max_memory": {"cpu": "60KB"}},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Return a checkpoint in several files, whose greedy answers vary."""
    folder = tmp_path_factory.mktemp("models") / "shards"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    model.save_pretrained(folder, max_shard_size="30KB")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(128)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w2").save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


def config(folder, cache, **more):
    return ModelConfig(model_name=str(folder), precision="fp32", device="cpu", cache_dir=cache, **more)


def decode(ids):
    return "".join(f"{i} " for i in ids)


async def answer(engine, name, prompt, **more):
    request = Request(id=name, prompt_ids=tuple(prompt), max_new_tokens=10, **more)
    return "".join([event.text async for event in engine.submit(request)])


@pytest.mark.parametrize("wish", MAPS.values(), ids=MAPS)
async def test_an_offloaded_model_answers_as_the_whole_one(shards, tmp_path, wish):
    whole = AutoModelForCausalLM.from_pretrained(shards, dtype=torch.float32)
    prompts = [list(range(3 + i, 9 + 5 * i)) for i in range(5)]
    split = load(config(shards, tmp_path, **wish))
    assert "disk" in split.model.hf_device_map.values()
    for runner in ("native", "fast"):
        with pytest.raises(SetupError, match=f"--runner {runner}: .*one device"):
            choose_runner(split.model, EngineConfig(runner=runner))
    assert split.device == "cpu"
    engine = start_engine(split, decode, EngineConfig(max_running=3, max_step_tokens=16), None)
    try:
        assert type(engine._runner) is GenericRunner
        beams = answer(engine, "beams", prompts[0], num_beams=2)
        got = await asyncio.gather(*(answer(engine, str(i), p) for i, p in enumerate(prompts)), beams)
    finally:
        engine.shutdown()
    assert len(set(got)) > 3  # answers that vary
    options = [{}] * len(prompts) + [{"num_beams": 2, "early_stopping": True}]
    for text, prompt, more in zip(got, [*prompts, prompts[0]], options, strict=True):
        ids = torch.tensor([prompt])
        out = whole.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10, **more)
        assert [int(token) for token in text.split()] == [t for t in out[0, len(prompt) :].tolist() if t != 2]
    assert not list(tmp_path.iterdir())  # safetensors are read where they lie


async def test_embeddings_and_beams_of_an_offloaded_model_take_turns(shards, tmp_path):
    """Each of them loads the weights and removes them again."""
    split = load(config(shards, tmp_path, device_map={"": "disk"}))
    engine = start_engine(split, decode, EngineConfig(), None)

    async def embed(name):
        request = Request(id=name, prompt_ids=(3, 4, 5, 6), max_new_tokens=0, pooling="mean")
        return [event async for event in engine.submit(request)]

    async def embed_many():
        return [await embed(str(i)) for i in range(40)]

    try:
        many = asyncio.create_task(embed_many())
        beams = await asyncio.gather(*(answer(engine, f"beams {i}", [3, 4, 5], num_beams=3) for i in range(8)))
        await many
    finally:
        engine.shutdown()
    assert len(set(beams)) == 1


def test_an_adapter_of_an_offloaded_model_has_its_numbers(shards, tmp_path):
    runner = choose_runner(load(config(shards, tmp_path, device_map={"": "disk"})).model, EngineConfig())
    a, b = torch.ones(2, 32), torch.ones(32, 2)
    path = "model.layers.0.self_attn.q_proj"
    runner.add_adapter(lora := Lora("ones", {path: (a, b)}))
    x = torch.ones(1, 1, 32)
    with runner._adapters.rows([lora]):
        assert torch.equal(runner._adapters(path, x, torch.zeros(1, 1, 32)), x @ a.T @ b.T)


def test_a_map_that_need_not_split_splits_nothing(shards, tmp_path):
    loaded = load(config(shards, tmp_path, device_map="auto"))
    assert not hasattr(loaded.model, "hf_device_map")
    assert "fits the CPU's memory" in loaded.notes[0]


def test_pickled_weights_are_offloaded_into_a_folder_that_goes_with_the_model(shards, tmp_path):
    folder, cache = tmp_path / "pickled", tmp_path / "cache"
    model = AutoModelForCausalLM.from_pretrained(shards, dtype=torch.float32)
    folder.mkdir()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    for file in shards.glob("*.json"):
        if "index" not in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    loaded = load(config(folder, cache, device_map=PARTS, allow_pickle=True))
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(loaded.model(ids).logits, model(ids).logits)
    assert list(cache.iterdir())
    start_engine(loaded, decode, EngineConfig(), None).shutdown()
    assert not list(cache.iterdir())


def test_a_load_that_fails_after_its_weights_leaves_none_of_them_on_the_disk(shards, tmp_path):
    folder, cache = tmp_path / "pickled", tmp_path / "cache"
    model = AutoModelForCausalLM.from_pretrained(shards, dtype=torch.float32)
    model.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text('{"peft_type": "LOHA"}')
    for file in shards.glob("token*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    wish = {"device_map": PARTS, "allow_pickle": True, "adapters": {"lora": str(tmp_path / "lora")}}
    with pytest.raises(ModelLoadError, match="LOHA"):
        load(config(folder, cache, **wish))
    assert not list(cache.iterdir())


def test_a_model_that_does_not_fit_is_refused_with_what_would(shards, tmp_path, monkeypatch):
    estimate = estimate_folder(shards)
    free = estimate.least("bit8")
    monkeypatch.setattr("run_gpt.models.preflight.free_bytes", lambda device: free)
    with pytest.raises(ModelLoadError, match=r"needs .* free on cpu: use --precision bit8 or --device-map auto"):
        load(config(shards, tmp_path))
    monkeypatch.setattr("run_gpt.models.device_map.free_bytes", lambda device: free)
    assert "disk" in load(config(shards, tmp_path, device_map="auto")).model.hf_device_map.values()  # as advised
    free = estimate.least("fp32")
    load(config(shards, tmp_path))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_estimate_is_what_the_weights_take(shards, precision):
    model = AutoModelForCausalLM.from_pretrained(
        shards, dtype=getattr(torch, {"fp32": "float32", "bf16": "bfloat16"}.get(precision, "float16"))
    )
    estimate = estimate_folder(shards)
    assert estimate.weights(precision) == sum(p.nbytes for p in model.parameters())
    assert estimate.context == json.loads((shards / "config.json").read_text())["max_position_embeddings"]
    assert estimate.cache_numbers == 2 * 3 * 2 * 8


def test_the_estimate_of_the_default_model_is_what_it_takes():
    folder = fetch(ModelConfig()).folder
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
    assert estimate_folder(folder).weights("bf16") == sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"max_memory": {"cpu": "8GB"}}, "--device-map auto"),
        ({"device_map": "auto", "max_memory": {"cpu": "much"}}, "'much' is no size"),
        ({"device_map": "auto", "max_memory": {"toaster": "8GB"}}, "neither cpu nor"),
        ({"device_map": {"": "moon"}}, "'moon'"),
    ],
)
def test_what_cannot_be_is_one_line(shards, tmp_path, wish, reason):
    with pytest.raises(ModelLoadError, match=reason):
        load(config(shards, tmp_path, **wish))


def test_few_bits_are_not_offloaded_to_disk(shards, tmp_path):
    with pytest.raises(ModelLoadError, match=r"bit8 cannot be offloaded to disk"):
        load(ModelConfig(model_name=str(shards), precision="bit8", device="cpu", device_map=PARTS))
