"""Adapters and embeddings as users have them: without these tests answers could come from a wrong adapter."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from run_gpt import Client, create_model
from run_gpt.config import ModelConfig
from run_gpt.errors import (
    ContextLengthExceeded,
    Forbidden,
    InvalidRequest,
    ModelLoadError,
    ModelNotFound,
    RequestError,
    SetupError,
)
from run_gpt.models import fetch

PROMPT = "The first three planets of the solar system are"
SHORT = {"max_new_tokens": 12, "do_sample": False}
TEXTS = ["a cat", "a kitten", "the price of steel"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Write two LoRAs of the default model, as PEFT does; each changes its answers. Return their folders."""
    from peft import LoraConfig, get_peft_model  # here, since it takes 5 s in each worker that only collects

    folders = []
    for seed, name in enumerate(("pirate", "poet")):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(fetch(ModelConfig()).folder))
        config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        adapted = get_peft_model(model, config)
        torch.manual_seed(seed)
        adapted = adapted.to_empty(device="cpu")
        for parameter_name, parameter in adapted.named_parameters():
            if "lora_" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.2)
        folder = tmp_path_factory.mktemp("adapters") / name
        adapted.save_pretrained(folder)
        folders.append(str(folder))
    return folders


@pytest.fixture(scope="module")
def local(folders: list[str]) -> Any:
    with create_model(precision="fp32", adapters={"pirate": folders[0], "poet": folders[1]}) as model:
        yield model


@pytest.fixture(scope="module")
def changeable(start_server: Any, folders: list[str]) -> Any:
    """Yield a server of two replicas whose adapters can be changed."""
    options = ("--precision", "fp32", "--replicas", "2", "--adapter", f"poet={folders[1]}", "--runtime-adapters")
    with start_server(*options) as server:
        yield server


@pytest.fixture(params=["grpc", "http"])
def remote(request: pytest.FixtureRequest, changeable: Any) -> Any:
    url = changeable.grpc_url if request.param == "grpc" else changeable.http_url
    with Client().get_model(endpoint=url) as model:
        yield model


def test_an_adapter_is_chosen_by_name_or_is_the_default(local: Any, folders: list[str]) -> None:
    plain, pirate, poet = (local.generate(PROMPT, adapter=name, **SHORT).text for name in ("base", "pirate", "poet"))
    assert len({plain, pirate, poet}) == 3
    assert local.generate(PROMPT, **SHORT).text == plain
    assert local.adapters() == ["pirate", "poet"]
    with create_model(precision="fp32", adapter_name_or_path=folders[0], adapters={"b": folders[1]}) as model:
        assert model.adapters() == ["pirate", "b"]
        assert model.generate(PROMPT, **SHORT).text == pirate
        assert model.generate(PROMPT, adapter="base", **SHORT).text == plain
        assert model.generate(PROMPT, adapter="b", **SHORT).text == poet
        assert model.unload_adapter("pirate") == ["b"]
        assert model.generate(PROMPT, **SHORT).text == plain  # there is no default any more
    with pytest.raises(ModelNotFound, match=r"adapter = 'parrot' is not loaded: there are pirate, poet"):
        local.generate(PROMPT, adapter="parrot")
    with pytest.raises(InvalidRequest, match="the model itself"):
        local.load_adapter("base", folders[0])
    with pytest.raises(InvalidRequest, match="path: no adapter folder nowhere"):
        local.load_adapter("other", "nowhere")


def test_an_adapter_of_another_model_stops_the_start(tmp_path: Path, folders: list[str]) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folders[0], tmp_path / "other")
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: tensor.repeat(2, 2) for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 4}))
    with pytest.raises(ModelLoadError, match=r"q_proj has 576 inputs"):
        create_model(precision="fp32", adapter_name_or_path=str(folder))


def test_adapters_come_and_go_in_all_replicas(local: Any, remote: Any, folders: list[str]) -> None:
    texts = {name: local.generate(PROMPT, adapter=name, **SHORT).text for name in ("base", "pirate", "poet")}
    assert remote.adapters() == ["poet"]
    assert remote.load_adapter("pirate", folders[0]) == ["poet", "pirate"]
    for _ in range(2):  # the replicas take turns
        for name, text in texts.items():
            assert remote.generate(PROMPT, adapter=name, **SHORT).text == text
            assert "".join(map(str, remote.generate_stream(PROMPT, adapter=name, **SHORT))) == text
    answer = remote.generate(PROMPT, model="pirate", **SHORT)
    events = list(remote.generate_stream(PROMPT, model="pirate", **SHORT))
    assert answer.text == "".join(map(str, events)) == texts["pirate"]
    assert {one.model for one in (answer, *events)} == {"pirate"}
    with pytest.raises(InvalidRequest, match="'pirate': an adapter of this name is loaded"):
        remote.load_adapter("pirate", folders[0])
    with pytest.raises(InvalidRequest, match="path: no adapter folder nowhere"):
        remote.load_adapter("other", "nowhere")
    assert remote.unload_adapter("pirate") == ["poet"]
    for _ in range(2):
        with pytest.raises(ModelNotFound, match=r"'pirate' is not loaded: there are poet"):
            remote.generate(PROMPT, adapter="pirate")
        with pytest.raises(ModelNotFound, match=r"'pirate' is not served here.*'poet'"):
            remote.generate(PROMPT, model="pirate")
    with pytest.raises(ModelNotFound, match=r"'pirate' is not loaded"):
        remote.unload_adapter("pirate")


def test_a_replica_that_is_started_again_has_what_the_others_have(
    changeable: Any, local: Any, folders: list[str]
) -> None:
    expected = local.generate(PROMPT, adapter="pirate", **SHORT).text
    with Client().get_model(endpoint=changeable.grpc_url) as model:
        model.load_adapter("pirate", folders[0])
        model.unload_adapter("poet")
        workers = [p for p in changeable.processes() if p.cmdline()[-2:] == ["executor", "0"]]
        assert len(workers) == 1
        workers[0].kill()
        wait_until(lambda: ready_replicas(changeable) == 1)
        wait_until(lambda: ready_replicas(changeable) == 2)
        for _ in range(4):
            assert model.generate(PROMPT, adapter="pirate", **SHORT).text == expected
            assert model.adapters() == ["pirate"]
        model.load_adapter("poet", folders[1])
        model.unload_adapter("pirate")


def ready_replicas(server: Any) -> int:
    return int(httpx.get(f"{server.http_url}/ready", timeout=10).json()["replicas"]["ready"])


def wait_until(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)  # between two polls of the condition


def test_a_server_that_does_not_say_so_keeps_its_adapters(server: Any, folders: list[str]) -> None:
    for url in (server.grpc_url, server.http_url):
        with Client().get_model(endpoint=url) as model:
            assert model.adapters() == []
            for change in (lambda m=model: m.load_adapter("a", folders[0]), lambda m=model: m.unload_adapter("a")):
                with pytest.raises(Forbidden, match="--runtime-adapters"):
                    change()
    answer = httpx.post(f"{server.http_url}/adapters/load", json={"name": "a", "path": folders[0]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
    listed = httpx.get(f"{server.http_url}/adapters")
    assert (listed.status_code, listed.json()["adapters"], listed.json()["default"]) == (200, [], None)


@pytest.mark.parametrize("fields", [{"name": "a b", "path": "x"}, {"name": "a"}, {"name": "a", "path": ""}, {}])
def test_a_change_that_says_too_little_is_refused(changeable: Any, fields: dict[str, str]) -> None:
    answer = httpx.post(f"{changeable.http_url}/adapters/load", json=fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] in ("name", "path")


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_are_the_same_everywhere(server: Any, local: Any, pooling: Any) -> None:
    expected = local.embed(TEXTS, pooling=pooling)
    assert [len(vector) for vector in expected.vectors] == [576] * 3
    alike, unlike = (
        sum(a * b for a, b in zip(expected.vectors[0], other, strict=True)) for other in expected.vectors[1:]
    )
    assert alike > unlike
    found = []
    for url in (server.grpc_url, server.http_url):
        with Client().get_model(endpoint=url) as model:
            answer = model.embed(TEXTS, pooling=pooling)
            assert answer.usage == expected.usage
            found.append(answer.vectors)
    raw = httpx.post(f"{server.http_url}/embed", json={"texts": TEXTS, "pooling": pooling}, timeout=60).json()
    assert (raw["object"], raw["data"][1]["object"], raw["data"][1]["index"]) == ("list", "embedding", 1)
    found.append([item["embedding"] for item in raw["data"]])
    command = [
        sys.executable,
        "-m",
        "run_gpt.cli",
        "embed",
        *TEXTS,
        "--pooling",
        pooling,
        "--endpoint",
        server.grpc_url,
    ]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    found.append([json.loads(line) for line in lines])
    for vectors in found:
        assert vectors == [pytest.approx(vector, abs=1e-5) for vector in expected.vectors]
    assert found[0] == found[1]  # to the last digit: both ports carry the numbers unchanged


async def test_embeddings_have_adapters_limits_and_errors(local: Any) -> None:
    plain, adapted = (await local.aembed("a cat"), await local.aembed("a cat", adapter="poet"))
    assert plain.vectors != adapted.vectors
    with pytest.raises(ContextLengthExceeded, match=r"a text has \d+ tokens, the model's context holds 8192"):
        await local.aembed(["short", "long " * 9000])
    with pytest.raises(InvalidRequest, match=r"texts"):
        await local.aembed([])
    with pytest.raises(InvalidRequest, match=r"texts\[1\]"):
        await local.aembed(["a", ""])
    with pytest.raises(ModelNotFound, match="'parrot'"):
        await local.aembed("a", adapter="parrot")
    with pytest.raises(RequestError):
        await local.aembed(["word " * 3000] * 4, timeout=0.05)


def test_the_command_line_changes_a_servers_adapters(changeable: Any, folders: list[str]) -> None:
    def run(*arguments: str) -> list[str]:
        command = [sys.executable, "-m", "run_gpt.cli", "adapters", *arguments, "--endpoint", changeable.http_url]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()

    assert run("list") == ["poet"]
    assert run("load", "pirate", folders[0]) == ["poet", "pirate"]
    assert run("unload", "pirate") == ["poet"]


@pytest.mark.parametrize("options", [("--adapter", "a", "--adapter", "b"), ("--adapter", "x=a", "--adapter", "x=b")])
def test_two_adapters_of_one_name_are_refused(options: tuple[str, ...]) -> None:
    from run_gpt.cli.options import _parse_adapters

    with pytest.raises(SetupError, match="--adapter"):
        _parse_adapters(list(options[1::2]))
