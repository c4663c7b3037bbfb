"""Models from a small hub on this machine: complete downloads, safe weights, and no network needed later."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_hub import Hub, serving_hub

from run_gpt.config import ModelConfig
from run_gpt.errors import DownloadError, ModelLoadError, ModelNotFound
from run_gpt.models import fetch, list_models, pull, remove


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving_hub(tmp_path, monkeypatch) as server:
        yield server


MODEL = {"config.json": b"{}", "model.safetensors": b"x" * 5000, "README.md": b"read me"}


def test_a_model_is_fetched_once_and_then_needs_no_network(hub: Hub) -> None:
    hub.repos["org/tiny"] = {**MODEL, "pytorch_model.bin": b"y" * 5000, "original/consolidated.00.pth": b"z"}
    seen: list[tuple[int, int | None]] = []
    files = fetch(ModelConfig(model_name="org/tiny"), on_progress=lambda _, done, total: seen.append((done, total)))
    assert files.name == "org/tiny"
    assert sorted(file.name for file in files.folder.iterdir()) == ["config.json", "model.safetensors"]
    assert seen[-1] == (5002, 5002)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    hub.asked.clear()
    assert fetch(ModelConfig(model_name="org/tiny")) == files
    assert hub.asked == []


def test_it_is_listed_with_its_size_and_removed(hub: Hub) -> None:
    hub.repos["org/tiny"] = MODEL
    folder = fetch(ModelConfig(model_name="org/tiny")).folder
    row = list_models()[-1]
    assert (row.name, row.cached) == ("org/tiny", True)
    assert row.disk_bytes >= 5002
    assert remove("org/tiny") >= row.disk_bytes
    assert not folder.exists()


def test_pickled_weights_are_not_even_fetched_without_the_flag(hub: Hub) -> None:
    hub.repos["org/old"] = {"config.json": b"{}", "pytorch_model.bin": b"y" * 5000}
    with pytest.raises(ModelLoadError, match=r"org/old has only pickled weights.*--allow-pickle"):
        fetch(ModelConfig(model_name="org/old"))
    assert not any("resolve" in path for path in hub.asked)
    folder = fetch(ModelConfig(model_name="org/old", allow_pickle=True)).folder
    assert (folder / "pytorch_model.bin").is_file()
    with pytest.raises(ModelLoadError, match="--allow-pickle"):
        fetch(ModelConfig(model_name="org/old"))


def test_a_model_that_the_hub_does_not_have_is_not_found(hub: Hub) -> None:
    with pytest.raises(ModelNotFound, match="org/nothing"):
        fetch(ModelConfig(model_name="org/nothing"))


def test_a_hub_that_cannot_be_reached_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match="check the network") as caught:
        fetch(ModelConfig(model_name="org/tiny"))
    assert "\n" not in caught.value.message


def test_a_repository_that_asks_for_consent_says_so(hub: Hub) -> None:
    """Without it the line would send users to look for a fault of their network."""
    hub.repos["org/tiny"], hub.gated = MODEL, True
    with pytest.raises(DownloadError, match=r"org/tiny asks for consent: .*then set HF_TOKEN"):
        fetch(ModelConfig(model_name="org/tiny"))


def test_a_pull_without_network_keeps_what_is_here(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.repos["org/tiny"] = MODEL
    folder = fetch(ModelConfig(model_name="org/tiny")).folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull("org/tiny").folder == folder


FETCH = """
from run_gpt.config import ModelConfig
from run_gpt.models import fetch

def report(step, done, total):
    if "Waiting for another process" in step:
        print("waits", flush=True)

print(fetch(ModelConfig(model_name="org/tiny"), on_progress=report).folder, flush=True)
"""


@contextmanager
def fetching() -> Iterator[subprocess.Popen[str]]:
    """Return a user's process that fetches the model."""
    process = subprocess.Popen([sys.executable, "-c", FETCH], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_second_process_waits_for_the_first_ones_download(hub: Hub) -> None:
    hub.repos["org/tiny"], hub.slow = MODEL, True
    with fetching() as first:
        assert hub.stalled.wait(60)
        with fetching() as second:
            assert line_of(second) == "waits"
            hub.go_on.set()
            folder = line_of(first)
            assert line_of(second) == folder
    assert (Path(folder) / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert len([path for path in hub.asked if path.endswith("model.safetensors")]) == 2  # HEAD and GET, once


def test_a_download_that_is_killed_is_no_model_and_is_fetched_again(hub: Hub) -> None:
    hub.repos["org/tiny"], hub.slow = MODEL, True
    with fetching() as first:
        assert hub.stalled.wait(60)
        first.kill()
        first.wait()
    assert not any(model.cached for model in list_models() if model.source == "org/tiny")
    hub.slow = False
    hub.go_on.set()
    folder = fetch(ModelConfig(model_name="org/tiny")).folder
    assert (folder / "model.safetensors").read_bytes() == MODEL["model.safetensors"]


def other_program(**options: object) -> Path:
    """Fetch the model as a program that knows nothing of RunGPT does."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download("org/tiny", **options))  # type: ignore[arg-type]


def test_a_model_that_another_program_fetched_is_not_fetched_again(hub: Hub) -> None:
    hub.repos["org/tiny"] = {**MODEL, "tokenizer.json": b"{}", "LICENSE.txt": b"free"}
    folder = other_program(allow_patterns=["*.json", "*.safetensors"])
    hub.asked.clear()
    assert fetch(ModelConfig(model_name="org/tiny")).folder == folder
    assert [model.name for model in list_models() if model.cached] == ["org/tiny"]
    assert hub.asked == []


def test_other_programs_find_what_rungpt_fetched(hub: Hub) -> None:
    hub.repos["org/tiny"] = {"config.json": b"{}", "model.safetensors": b"x"}
    folder = fetch(ModelConfig(model_name="org/tiny")).folder
    assert other_program(local_files_only=True) == folder


@pytest.mark.parametrize("lacks", ["model-00002-of-00002.safetensors", "tokenizer.json", "config.json"])
def test_a_copy_that_lacks_what_changes_answers_is_completed(hub: Hub, lacks: str) -> None:
    shards = {f"model-0000{i}-of-00002.safetensors": b"x" * i for i in (1, 2)}
    hub.repos["org/tiny"] = {"config.json": b"{}", "tokenizer.json": b"{}", **shards}
    other_program(ignore_patterns=[lacks])
    assert not any(model.cached for model in list_models())
    assert (fetch(ModelConfig(model_name="org/tiny")).folder / lacks).is_file()


OFFLINE = """
from run_gpt.config import ModelConfig
from run_gpt.errors import RunGPTError
from run_gpt.models import fetch

try:
    print(fetch(ModelConfig(model_name="org/tiny")).folder)
except RunGPTError as error:
    print(error.message)
"""


def test_offline_what_is_here_is_served_and_the_rest_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["org/tiny"] = {**MODEL, "tokenizer.json": b"{}"}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run = [sys.executable, "-c", OFFLINE]
    assert "org/tiny is not in the hub's cache" in (said := subprocess.check_output(run, text=True))
    assert "HF_HUB_OFFLINE" in said
    other_program(ignore_patterns=["tokenizer.json"])
    assert "org/tiny lacks tokenizer.json" in subprocess.check_output(run, text=True)
    folder = other_program(ignore_patterns=["README.md"])
    assert subprocess.check_output(run, text=True).strip() == str(folder)


def test_the_cache_and_the_token_are_those_of_the_hub_s_variables(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["org/tiny"] = MODEL
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    said = subprocess.check_output([sys.executable, "-c", OFFLINE], text=True).strip()
    assert said.startswith(str(tmp_path / "home/hub/models--org--tiny/snapshots"))
    assert "Bearer hf_secret" in hub.tokens


def test_a_revision_is_fetched_beside_the_main_one_and_removed_alone(hub: Hub) -> None:
    hub.repos["org/tiny"] = MODEL
    hub.tags["org/tiny", "v1"] = {**MODEL, "model.safetensors": b"old"}
    main = fetch(ModelConfig(model_name="org/tiny")).folder
    files = fetch(ModelConfig(model_name="org/tiny@v1"))
    assert files.name == "org/tiny@v1"
    assert (files.folder / "model.safetensors").read_bytes() == b"old"
    assert fetch(ModelConfig(model_name="org/tiny", revision="v1")).folder == files.folder
    assert fetch(ModelConfig(model_name="org/tiny", revision=files.folder.name)).folder == files.folder
    assert [model.name for model in list_models() if model.cached] == ["org/tiny", "org/tiny@v1"]
    assert remove("org/tiny@v1") == 3 + 40  # the weights, and the note of the tag; the configuration is shared
    assert (main / "config.json").read_bytes() == b"{}"
    assert not files.folder.exists()


def test_a_revision_that_is_not_there_is_answered_with_those_that_are(hub: Hub) -> None:
    hub.repos["org/tiny"] = MODEL
    hub.tags["org/tiny", "v1"] = MODEL
    with pytest.raises(ModelNotFound, match=r"org/tiny has no revision 'v2': it has main, v1"):
        fetch(ModelConfig(model_name="org/tiny@v2"))
    with pytest.raises(ModelLoadError, match="this names v1 and v2: give one of them"):
        fetch(ModelConfig(model_name="org/tiny@v1", revision="v2"))


@pytest.mark.parametrize("name", ["smollm2", "/nowhere/model.gguf"])
def test_a_revision_of_a_model_from_elsewhere_is_refused(hub: Hub, name: str) -> None:
    with pytest.raises(ModelLoadError, match="has no revision 'v1': leave --revision out"):
        fetch(ModelConfig(model_name=name, revision="v1"))


def test_a_download_of_an_earlier_version_is_still_found(hub: Hub, tmp_path: Path) -> None:
    snapshot = tmp_path / "cache/hub/models--org--tiny/snapshots/abc"
    snapshot.mkdir(parents=True)
    record = tmp_path / "cache/files/org--tiny"
    record.mkdir(parents=True)
    data = {"name": "org/tiny", "folder": "hub/models--org--tiny/snapshots/abc", "pickled": False}
    (record / "hub.json").write_text(json.dumps(data))
    assert fetch(ModelConfig(model_name="org/tiny")).folder == snapshot
    assert hub.asked == []
