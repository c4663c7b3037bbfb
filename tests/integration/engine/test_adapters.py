"""Without these tests a sequence could get another's adapter, or embeddings depend on the batch, on any runner."""

import asyncio
import copy
from functools import cache

import pytest
import torch
import transformers

from run_gpt.config import EngineConfig
from run_gpt.engine.engine import BatchEngine
from run_gpt.engine.request import Request
from run_gpt.engine.runners.choice import choose_runner
from run_gpt.engine.runners.native.build import built, unsupported
from run_gpt.engine.runners.native.runner import fits as fits_native
from run_gpt.engine.runners.native.weights import PackedWeights
from run_gpt.errors import InvalidRequest, ModelLoadError, ModelNotFound, Unavailable
from run_gpt.models.adapters import read_adapter
from run_gpt.models.cache import cache_root

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
SIZE = {"vocab_size": 128, "eos_token_id": None, "bos_token_id": None}
PLAIN = {
    **SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
# Sizes of each family, and the layers that its LoRA adapters change.
FAMILIES = {
    "Llama": (PLAIN | {"num_key_value_heads": 2}, ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]),
    "GPTNeoX": (PLAIN, ["query_key_value", "dense_4h_to_h"]),
    "GPT2": (SIZE | {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}, ["c_attn", "c_proj"]),
    "OPT": (PLAIN | {"ffn_dim": 96, "word_embed_proj_dim": 64}, ["k_proj", "out_proj", "fc1", "fc2"]),
    "Rwkv": (SIZE | {"hidden_size": 64, "num_hidden_layers": 2, "attention_hidden_size": 64}, ["key", "output"]),
}
RUNNERS = {
    "Llama": ("native", "fast", "generic"),
    "GPTNeoX": ("native",),
    "GPT2": ("native", "generic"),
    "Rwkv": ("alone",),
}
CASES = [(family, runner) for family in FAMILIES for runner in RUNNERS.get(family, ("generic",))]
TOKENS = 12


@cache
def build(family):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family][0])
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Return `adapters(family)`, which gives two folders that PEFT has written."""

    from peft import LoraConfig, get_peft_model  # here, since it takes 5 s in each worker that only collects

    @cache
    def write(family):
        folders = []
        for seed, options in enumerate(({"r": 4, "lora_alpha": 8}, {"r": 8, "lora_alpha": 4, "use_rslora": True})):
            torch.manual_seed(seed + 1)
            config = LoraConfig(
                target_modules=FAMILIES[family][1],
                task_type="CAUSAL_LM",
                fan_in_fan_out=family == "GPT2",
                rank_pattern={".*0.*": 3} if seed else {},
                **options,
            )
            adapted = get_peft_model(copy.deepcopy(build(family)), config)
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.3)
            folders.append(tmp_path_factory.mktemp(f"{family}-{seed}"))
            adapted.save_pretrained(folders[-1])
        return folders

    return write


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def case(request):
    return request.param


@pytest.fixture
def start():
    engines = []

    def start(family, runner, **options):
        if runner == "native" and unsupported() is not None:
            pytest.skip(str(unsupported()))
        config = EngineConfig(max_running=4, max_step_tokens=16, runner=runner, **options)
        model = copy.deepcopy(build(family))
        if runner == "native":
            from run_gpt.engine.runners.native.binding import Kernels

            assert fits_native(model)
            packed = PackedWeights.of(model, Kernels(built(cache_root() / "kernels")), "fp32")
            chosen = choose_runner(model, config, packed=packed)
        else:
            chosen = choose_runner(model, config)
        engines.append(BatchEngine(chosen, lambda ids: "".join(f"{i} " for i in ids), config))
        return engines[-1]

    yield start
    for engine in engines:
        engine.scheduler.check()
        engine.shutdown()


def prompt(length, seed=0):
    return torch.randint(3, 128, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


async def answer(engine, name, ids, tokens=TOKENS, **more):
    request = Request(id=name, prompt_ids=tuple(ids), max_new_tokens=tokens, **more)
    return "".join([event.text async for event in engine.submit(request)]).split()


async def embed(engine, name, ids, pooling="mean", **more):
    request = Request(id=name, prompt_ids=tuple(ids), max_new_tokens=0, pooling=pooling, **more)
    [event] = [event async for event in engine.submit(request)]
    assert (event.finish_reason, event.tokens, event.text) == ("stop", 0, "")
    return torch.tensor(event.embedding)


def with_adapter(family, folder):
    """Return a new model with PEFT's own adapter, if there is a folder."""
    from peft import PeftModel

    model = copy.deepcopy(build(family))
    return model if folder is None else PeftModel.from_pretrained(model, folder).eval()


def theirs(family, folder, ids, **options):
    """Return the tokens of PEFT's own model."""
    model = with_adapter(family, folder)
    ids = torch.tensor([ids])
    options = {"do_sample": False, "max_new_tokens": TOKENS, **options}
    with torch.inference_mode():
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
    return [str(token) for token in out[0, ids.shape[1] :].tolist()]


def states(family, folder, ids):
    """Return transformers' own hidden states after the last norm: [tokens, hidden]."""
    model = with_adapter(family, folder)
    model = model if folder is None else model.merge_and_unload()
    with torch.inference_mode():
        return model.base_model(torch.tensor([ids])).last_hidden_state[0]


def near(ours, theirs):
    theirs = theirs / theirs.norm()
    return (ours - theirs).norm() < 1e-4


async def test_rows_of_two_adapters_and_of_none_in_one_batch_give_what_peft_gives(case, start, adapters):
    family, runner = case
    engine, folders = start(family, runner), adapters(family)
    for name, folder in zip("ab", folders, strict=True):
        engine.load_adapter(name, read_adapter(folder))
    assert engine.adapters == ("a", "b")
    # The same prompts for all: adapters must not reuse each other's cache.
    ids = [prompt(20), prompt(9, 1)]
    wanted = [("a", 0), (None, 0), ("b", 0), ("a", 1), (None, 1), ("b", 1), ("a", 0), (None, 0)]
    answers = await asyncio.gather(
        *(answer(engine, str(i), ids[which], adapter=name) for i, (name, which) in enumerate(wanted))
    )
    expected = {
        (name, which): theirs(family, folder, ids[which])
        for name, folder in ((None, None), ("a", folders[0]), ("b", folders[1]))
        for which in (0, 1)
    }
    assert answers == [expected[pair] for pair in wanted]
    assert len({tuple(tokens) for tokens in expected.values()}) == 6  # else the test would not tell them apart


async def test_an_embedding_is_that_of_the_models_last_hidden_states(case, start, adapters):
    family, runner = case
    engine, folders = start(family, runner), adapters(family)
    engine.load_adapter("a", read_adapter(folders[0]))
    long, short = prompt(50), prompt(5, 1)
    beside = asyncio.create_task(answer(engine, "beside", prompt(12, 2), tokens=40))
    got = await asyncio.gather(
        embed(engine, "1", long),
        embed(engine, "2", short),
        embed(engine, "3", long, "last"),
        embed(engine, "4", short, "last", adapter="a"),
        embed(engine, "5", long, adapter="a"),
        embed(engine, "6", short[:1], "last"),
    )
    plain, adapted = states(family, None, long), states(family, folders[0], long)
    expected = [
        plain.sum(0),
        states(family, None, short).sum(0),
        plain[-1],
        states(family, folders[0], short)[-1],
        adapted.sum(0),
        states(family, None, short[:1])[-1],
    ]
    assert [bool(near(ours, it)) for ours, it in zip(got, expected, strict=True)] == [True] * 6
    assert all(abs(float(vector.norm()) - 1) < 1e-5 for vector in got)
    assert await beside == theirs(family, None, prompt(12, 2), max_new_tokens=40)
    # Answers reuse the cache of embeddings, and embeddings that of answers.
    assert await answer(engine, "after", long) == theirs(family, None, long)
    assert near(await embed(engine, "7", long), plain.sum(0))
    assert near(await embed(engine, "8", long, "last"), plain[-1])


async def test_a_prompt_is_scored_with_the_adapter_of_its_request(case, start, adapters):
    """Check each part of the prompt, while another request has left the same prompt in the cache."""
    family, runner = case
    engine, [folder, _] = start(family, runner), adapters(family)
    engine.load_adapter("a", read_adapter(folder))
    ids = torch.tensor([prompt(50)])

    async def scores(name, adapter):
        request = Request(
            id=name, prompt_ids=tuple(ids[0].tolist()), max_new_tokens=0, prompt_logprobs=0, adapter=adapter
        )
        [event] = [event async for event in engine.submit(request)]
        return torch.tensor([score.logprob for score in event.prompt_logprobs])

    got = [await scores("1", None), *await asyncio.gather(scores("2", "a"), scores("3", None))]
    for ours, model in zip(
        got,
        [build(family), with_adapter(family, folder), build(family)],
        strict=True,
    ):
        with torch.inference_mode():
            logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        torch.testing.assert_close(ours, logprobs.gather(1, ids[0, 1:, None])[:, 0], atol=1e-3, rtol=1e-4)


async def test_beams_have_the_adapter_of_their_request(case, start, adapters):
    family, runner = case
    engine, folder = start(family, runner), adapters(family)[0]
    engine.load_adapter("a", read_adapter(folder))
    ids = prompt(9, 3)
    got = await asyncio.gather(
        answer(engine, "1", ids, num_beams=3, adapter="a"), answer(engine, "2", ids, num_beams=3)
    )
    # transformers cannot pass RWKV's state from beam to beam.
    options = {"num_beams": 3, "early_stopping": True, "use_cache": family != "Rwkv"}
    assert got == [theirs(family, folder, ids, **options), theirs(family, None, ids, **options)]


async def test_an_adapter_comes_and_goes_while_others_answer(case, start, adapters):
    family, runner = case
    engine, folders = start(family, runner), adapters(family)
    ids = prompt(15, 4)
    before = asyncio.create_task(answer(engine, "before", ids, tokens=60))
    await asyncio.to_thread(engine.load_adapter, "a", read_adapter(folders[0]))
    with pytest.raises(InvalidRequest, match=r"'a'.*loaded"):
        await asyncio.to_thread(engine.load_adapter, "a", read_adapter(folders[0]))
    events = engine.submit(Request(id="first", prompt_ids=tuple(ids), max_new_tokens=60, adapter="a"))
    text = (await anext(events)).text
    unloading = asyncio.create_task(asyncio.to_thread(engine.unload_adapter, "a"))
    while engine.adapters:
        await asyncio.sleep(0.001)  # between two checks of the condition
    with pytest.raises(ModelNotFound, match="adapter = 'a' is not loaded: none is loaded"):
        await answer(engine, "late", ids, adapter="a")
    text += "".join([event.text async for event in events])  # a running request keeps its adapter
    await unloading
    assert text.split() == theirs(family, folders[0], ids, max_new_tokens=60)
    assert await before == theirs(family, None, ids, max_new_tokens=60)
    # Another one under the same name reuses nothing of the first.
    await asyncio.to_thread(engine.load_adapter, "a", read_adapter(folders[1]))
    assert await answer(engine, "again", ids, adapter="a") == theirs(family, folders[1], ids)
    with pytest.raises(ModelNotFound, match="'b' is not loaded: there are a"):
        engine.unload_adapter("b")


async def test_what_does_not_fit_is_refused_and_leaves_the_engine_as_it_was(case, start, adapters):
    family, runner = case
    engine = start(family, runner)
    weights = read_adapter(adapters(family)[0])
    path, (a, b) = next(iter(weights.items()))
    with pytest.raises(InvalidRequest, match=path):
        engine.load_adapter("wide", {path: (a, torch.cat([b, b]))})
    with pytest.raises(InvalidRequest, match=r"model\.layers\.9\.nothing"):
        engine.load_adapter("elsewhere", {"model.layers.9.nothing": (a, b)})
    assert engine.adapters == ()
    assert await answer(engine, "1", prompt(9)) == theirs(family, None, prompt(9))
    engine.shutdown()
    with pytest.raises(Unavailable):
        engine.load_adapter("late", weights)


@pytest.mark.skipif(unsupported() is not None, reason=str(unsupported()))
async def test_adapters_go_with_the_rows_to_the_runner_that_takes_over(start, adapters):
    from run_gpt.engine.runners.native.binding import Kernels
    from run_gpt.engine.runners.native.runner import NativeRunner

    engine, folder = start("Llama", "generic"), adapters("Llama")[0]
    engine.load_adapter("a", read_adapter(folder))
    events = engine.submit(Request(id="1", prompt_ids=tuple(prompt(15)), max_new_tokens=60, adapter="a"))
    text = (await anext(events)).text
    model = engine._runner._model
    packed = PackedWeights.of(model, Kernels(built(cache_root() / "kernels")), "fp32")
    native = NativeRunner(model, packed, EngineConfig(max_running=4))
    assert await asyncio.to_thread(engine.replace_runner, native)
    native.take_over()
    text += "".join([event.text async for event in events])
    assert text.split() == theirs("Llama", folder, prompt(15), max_new_tokens=60)
    beams = await answer(engine, "2", prompt(9), num_beams=2, adapter="a")
    assert beams == theirs("Llama", folder, prompt(9), num_beams=2, early_stopping=True)


def test_unloading_waits_for_nobody_once_the_engine_ends(start, adapters):
    engine = start("Llama", "generic")
    engine.load_adapter("a", read_adapter(adapters("Llama")[0]))
    engine.shutdown()
    with pytest.raises(Unavailable):
        engine.unload_adapter("a")


CHANGES = {
    "peft_type": ("IA3", "only LORA"),
    "use_dora": (True, "use_dora"),
    "bias": ("all", "bias"),
    "modules_to_save": (["lm_head"], "modules_to_save"),
    "init_lora_weights": ("pissa_niter_4", "init_lora_weights"),
    "r": (5, "rank 4, and adapter_config.json says 5"),
    "lora_alpha": ("much", "lora_alpha"),
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_kind_of_adapter_that_is_not_served_is_named(tmp_path, adapters, field):
    import json
    import shutil

    folder = shutil.copytree(adapters("OPT")[0], tmp_path / "lora")
    config = json.loads((folder / "adapter_config.json").read_text())
    value, words = CHANGES[field]
    (folder / "adapter_config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(ModelLoadError, match=words):
        read_adapter(folder)


def test_damaged_adapters_are_named(tmp_path, adapters):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(adapters("OPT")[0], tmp_path / "lora")
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(iter(tensors))

    def refused(words, **changed):
        save_file({**tensors, **changed}, weights)
        with pytest.raises(ModelLoadError, match=words):
            read_adapter(folder)

    refused("NaN", **{name: tensors[name] * torch.nan})
    refused("no A and B", **{name: torch.zeros(3)})
    refused("lm_head", **{"base_model.model.lm_head.weight": torch.zeros(3, 3)})
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelLoadError, match=r"adapter_model\.safetensors"):
        read_adapter(folder)
    weights.unlink()
    with pytest.raises(ModelLoadError, match="--allow-pickle"):
        read_adapter(folder)
    torch.save(tensors, folder / "adapter_model.bin")
    with pytest.raises(ModelLoadError, match="--allow-pickle"):
        read_adapter(folder)
    assert read_adapter(folder, allow_pickle=True).keys() == read_adapter(adapters("OPT")[0]).keys()
