"""Adapters and embeddings as users have them: in Python, through both doors, in each replica, on the command line."""

import asyncio
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import torch

from run_gpt import Client, create_model
from run_gpt.config import ModelConfig
from run_gpt.errors import ContextLengthExceeded, Forbidden, InvalidRequest, ModelNotFound
from run_gpt.models import fetch, load

PROMPT = "The first three planets of the solar system are"
GREEDY = {"max_new_tokens": 12, "do_sample": False}
TEXTS = ["Water boils at a hundred degrees.", "é \u2028 🦙", PROMPT]
SECONDS = 120

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> dict[str, Path]:
    """Two adapters of the default model, as PEFT writes them, that change what it says."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(fetch(ModelConfig()).folder)
    config.num_hidden_layers = 1  # the first layer's adapter fits the whole model, too
    folder, written = tmp_path_factory.mktemp("adapters"), {}
    for seed, name in enumerate(("north", "south"), start=1):
        torch.manual_seed(seed)
        lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_config(config), lora)
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder / name)
        written[name] = folder / name
    return written


@pytest.fixture(scope="module")
def local(adapters):
    """The model in this process: `north` for requests that name no adapter, `south` for those that ask for it."""
    with create_model(
        precision="fp32", adapter_name_or_path=str(adapters["north"]), adapters={"south": str(adapters["south"])}
    ) as model:
        yield model


@pytest.fixture(scope="module")
def expected(local) -> dict[str, str]:
    """What the model says with each adapter and without."""
    answers = {name: local.generate(PROMPT, adapter=name, **GREEDY).text for name in ("base", "north", "south")}
    assert len(set(answers.values())) == 3
    return answers


@pytest.fixture(scope="module")
def open_server(start_server, adapters):
    """Two replicas with `south`, whose adapters may be changed."""
    arguments = ["--replicas", "2", "--precision", "fp32", "--runtime-adapters"]
    with start_server(*arguments, "--adapter", f"south={adapters['south']}") as server:
        wait_for_replicas(server, 2)
        yield server


@pytest.fixture(params=["grpc", "http"])
def remote(request, open_server):
    url = open_server.grpc_url if request.param == "grpc" else open_server.http_url
    with Client().get_model(endpoint=url) as model:
        yield model


def wait_for_replicas(server, count):
    deadline = time.monotonic() + SECONDS
    while httpx.get(f"{server.http_url}/ready", timeout=5).json()["replicas"]["ready"] != count:
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.1)  # between two looks at the condition


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "run_gpt.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


def test_a_request_chooses_its_adapter_and_rows_of_a_batch_may_differ(local, expected):
    assert local.generate(PROMPT, **GREEDY).text == expected["north"], "the unnamed adapter is the default"
    names = ["south", "base", "north", "base", "south"]

    async def ask():
        return await asyncio.gather(*(local.agenerate(PROMPT, adapter=name, **GREEDY) for name in names))

    assert [answer.text for answer in asyncio.run(ask())] == [expected[name] for name in names]
    streamed = "".join(event.text for event in local.generate_stream(PROMPT, adapter="south", **GREEDY))
    assert streamed == expected["south"]
    assert local.chat("Hi", adapter="south", **GREEDY).model == "smollm2"


def test_adapters_come_and_go_while_the_model_lives(local, adapters, expected):
    assert local.adapters() == ["north", "south"]
    assert local.load_adapter("again", str(adapters["south"])) == ["north", "south", "again"]
    assert local.generate(PROMPT, adapter="again", **GREEDY).text == expected["south"]
    assert local.unload_adapter("again") == ["north", "south"]
    with pytest.raises(ModelNotFound, match="there are north, south") as raised:
        local.generate(PROMPT, adapter="again")
    assert raised.value.param == "adapter"
    with pytest.raises(ModelNotFound, match="again"):
        local.unload_adapter("again")


@pytest.mark.parametrize(
    ("name", "path", "param"),
    [
        ("base", "{south}", "name"),
        ("south", "{south}", "name"),
        ("a b", "{south}", "name"),
        ("new", "./nothing/here", "path"),
        ("new", "", "path"),
    ],
)
def test_an_adapter_that_cannot_be_loaded_is_refused_by_name(local, adapters, name, path, param):
    with pytest.raises(InvalidRequest) as raised:
        local.load_adapter(name, path.format(**adapters))
    assert raised.value.param == param
    assert local.adapters() == ["north", "south"]


def test_vectors_have_length_one_and_do_not_depend_on_what_runs_beside_them(local):
    together = local.embed(TEXTS)
    assert together.object == "list"
    assert [item.index for item in together.data] == [0, 1, 2]
    assert together.usage.prompt_tokens == together.usage.total_tokens > len(TEXTS)
    for text, vector in zip(TEXTS, together.vectors, strict=True):
        assert len(vector) == 576
        assert math.isclose(math.hypot(*vector), 1.0, abs_tol=1e-5)
        assert vector == pytest.approx(local.embed(text).vectors[0], abs=1e-5)
    last, other = local.embed(TEXTS[0], pooling="last"), local.embed(TEXTS[0], adapter="south")
    assert len({tuple(answer.vectors[0]) for answer in (together, last, other)}) == 3


def test_a_vector_is_that_of_transformers(local):
    loaded = load(ModelConfig(precision="fp32", device="cpu"))
    with torch.inference_mode():
        ids = torch.tensor([loaded.tokenizer(PROMPT)["input_ids"]])
        hidden = loaded.model.model(ids).last_hidden_state[0]
    for pooling, pooled in (("mean", hidden.mean(0)), ("last", hidden[-1])):
        expected = torch.nn.functional.normalize(pooled, dim=0).tolist()
        assert local.embed(PROMPT, pooling=pooling, adapter="base").vectors[0] == pytest.approx(expected, abs=1e-4)


def test_texts_that_cannot_be_embedded_are_refused(local):
    with pytest.raises(ContextLengthExceeded, match=str(local.context_length)):
        local.embed(["fine", "word " * (local.context_length + 1)])
    for texts in ([], [""], ["x"] * 1025, None, [3]):
        with pytest.raises(InvalidRequest, match="texts"):
            local.embed(texts)
    with pytest.raises(InvalidRequest, match="pooling"):
        local.embed("x", pooling="max")
    with pytest.raises(ModelNotFound, match="nobody"):
        local.embed("x", adapter="nobody")


def test_both_doors_give_the_answers_of_each_adapter(remote, expected):
    """Without an unnamed adapter the model itself is the default."""
    answers = [remote.generate(PROMPT, adapter=name, **GREEDY).text for name in ("south", "base", None)]
    assert answers == [expected["south"], expected["base"], expected["base"]]
    with pytest.raises(ModelNotFound, match="south") as raised:
        remote.generate(PROMPT, adapter="north")
    assert raised.value.param == "adapter"
    with pytest.raises(ModelNotFound):
        next(remote.generate_stream(PROMPT, adapter="north"))


def test_both_doors_give_the_vectors_bit_by_bit(open_server, local):
    answers = []
    for url in (open_server.grpc_url, open_server.http_url):
        with Client().get_model(endpoint=url) as model:
            answers.append(model.embed(TEXTS, pooling="last").vectors)
            assert asyncio.run(embed_async(url)) == answers[-1]
    assert answers[0] == answers[1]
    mine = local.embed(TEXTS, pooling="last", adapter="base").vectors
    for ours, theirs in zip(answers[0], mine, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    raw = httpx.post(f"{open_server.http_url}/embed", json={"texts": TEXTS, "pooling": "last"}, timeout=60).json()
    assert [item["embedding"] for item in raw["data"]] == answers[0]
    assert (raw["object"], raw["data"][0]["object"], raw["model"]) == ("list", "embedding", "smollm2")


async def embed_async(url):
    async with Client().get_model(endpoint=url) as model:
        return (await model.aembed(TEXTS, pooling="last")).vectors


def test_every_replica_has_what_was_loaded_and_nothing_of_what_was_unloaded(remote, adapters, expected):
    assert remote.load_adapter("north", str(adapters["north"])) == ["south", "north"]
    answers = remote.generate([PROMPT] * 4, adapter="north", **GREEDY)  # the least busy replica in turn
    assert [answer.text for answer in answers] == [expected["north"]] * 4
    with pytest.raises(InvalidRequest, match="north"):
        remote.load_adapter("north", str(adapters["north"]))
    assert remote.unload_adapter("north") == ["south"]
    for _ in range(4):
        with pytest.raises(ModelNotFound):
            remote.generate(PROMPT, adapter="north")
    with pytest.raises(InvalidRequest) as raised:
        remote.load_adapter("wrong", "./nothing/here")
    assert raised.value.param == "path"
    assert remote.adapters() == asyncio.run(adapters_async(remote.endpoint)) == ["south"]


async def adapters_async(url):
    async with Client().get_model(endpoint=url) as model:
        return await model.aadapters()


def test_the_routes_of_http(open_server, adapters):
    with httpx.Client(base_url=open_server.http_url, timeout=60) as client:
        assert client.get("/adapters").json()["adapters"] == ["south"]
        loaded = client.post("/adapters/load", json={"name": "raw", "path": str(adapters["north"])})
        assert (loaded.status_code, loaded.json()["adapters"]) == (200, ["south", "raw"])
        assert client.post("/adapters/unload", json={"name": "raw"}).json()["adapters"] == ["south"]
        assert client.post("/adapters/unload", json={"name": "raw"}).status_code == 404
        refused = client.post("/adapters/load", json={"name": "x", "path": "y", "force": True})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "force")


def test_the_commands(open_server, adapters, expected):
    where = ["--endpoint", open_server.grpc_url]
    assert cli("adapters", "load", "typed", str(adapters["north"]), *where).stdout == "south\ntyped\n"
    asked = cli("generate", PROMPT, "--use-adapter", "typed", "--max-new-tokens", "12", "--no-do-sample", *where)
    assert asked.stdout.rstrip("\n") == expected["north"].rstrip("\n")
    assert cli("adapters", "list", *where).stdout == "south\ntyped\n"
    assert cli("adapters", "unload", "typed", *where).stdout == "south\n"
    lines = cli("embed", *TEXTS, *where).stdout.splitlines()
    assert [len(json.loads(line)) for line in lines] == [576] * len(TEXTS)
    unknown = cli("adapters", "unload", "typed", *where)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "'typed' is not loaded" in unknown.stderr


def test_a_server_that_was_not_told_to_refuses_changes(server, adapters):
    for url in (server.grpc_url, server.http_url):
        with Client().get_model(endpoint=url) as model:
            assert model.adapters() == []
            with pytest.raises(Forbidden, match="--runtime-adapters"):
                model.load_adapter("north", str(adapters["north"]))
            with pytest.raises(Forbidden, match="--runtime-adapters"):
                model.unload_adapter("north")
            assert model.adapters() == []


def test_a_replica_that_is_started_again_has_what_the_others_have(open_server, adapters, expected):
    """Last, since it takes a replica away: what was unloaded is gone there, what was loaded is there."""
    with Client().get_model(endpoint=open_server.http_url) as model:
        model.load_adapter("north", str(adapters["north"]))
        model.unload_adapter("south")
        workers = [p for p in open_server.processes() if "executor" in p.cmdline()]
        workers[0].send_signal(signal.SIGKILL)
        workers[0].wait(SECONDS)
        wait_for_replicas(open_server, 1)
        wait_for_replicas(open_server, 2)
        answers = model.generate([PROMPT] * 6, adapter="north", **GREEDY)
        assert [answer.text for answer in answers] == [expected["north"]] * 6
        for _ in range(4):
            assert model.adapters() == ["north"]
            with pytest.raises(ModelNotFound):
                model.generate(PROMPT, adapter="south")
