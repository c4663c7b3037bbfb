"""GGUF files from a small hub on this machine: by quantisation or file, with all parts, or the list of them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import Hub, serving_hub

from run_gpt.config import ModelConfig
from run_gpt.errors import ModelLoadError
from run_gpt.models.cache import ModelCache
from run_gpt.models.files import fetch, hub_name, own_name
from run_gpt.models.hub import fetch_from_hub
from run_gpt.models.hub_names import HubName
from run_gpt.models.library import list_models, remove
from run_gpt.models.progress import no_progress

FILES = {
    "README.md": b"read me",
    "tiny-Q4_K_M.gguf": b"GGUF 4",
    "tiny-Q8_0.gguf": b"GGUF 8",
    "mmproj-tiny-F16.gguf": b"GGUF of images",
    "UD/tiny-UD-Q2_K_XL.gguf": b"GGUF 2",
    "BF16/tiny-BF16-00001-of-00002.gguf": b"GGUF 16 a",
    "BF16/tiny-BF16-00002-of-00002.gguf": b"GGUF 16 b",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving_hub(tmp_path, monkeypatch) as server:
        server.repos["org/tiny-GGUF"] = FILES
        yield server


def fetched(name: str) -> Path:
    hub = hub_name(ModelCache(), name)
    assert hub is not None
    return fetch_from_hub(ModelCache(), hub, allow_pickle=False, again=False, on_progress=no_progress)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("org/tiny-GGUF", "tiny-Q4_K_M.gguf"),
        ("org/tiny-GGUF:latest", "tiny-Q4_K_M.gguf"),
        ("org/tiny-GGUF:Q8_0", "tiny-Q8_0.gguf"),
        ("hf.co/org/tiny-GGUF:q8_0", "tiny-Q8_0.gguf"),
        ("https://huggingface.co/org/tiny-GGUF", "tiny-Q4_K_M.gguf"),
        ("https://huggingface.co/org/tiny-GGUF:Q8_0", "tiny-Q8_0.gguf"),
        ("https://huggingface.co/org/tiny-GGUF/blob/main/tiny-Q8_0.gguf", "tiny-Q8_0.gguf"),
        ("https://huggingface.co/org/tiny-GGUF/resolve/main/tiny-Q8_0.gguf?download=true", "tiny-Q8_0.gguf"),
        ("org/tiny-GGUF:tiny-Q8_0.gguf", "tiny-Q8_0.gguf"),
        ("org/tiny-GGUF@main:Q8_0", "tiny-Q8_0.gguf"),
        ("org/tiny-GGUF:Q2_K_XL", "UD/tiny-UD-Q2_K_XL.gguf"),
        ("org/tiny-GGUF:BF16", "BF16/tiny-BF16-00001-of-00002.gguf"),
    ],
)
def test_a_name_fetches_one_model_with_all_its_parts_once(hub: Hub, name: str, file: str) -> None:
    path = fetched(name)
    assert str(path).endswith(f"/{file}")
    assert path.read_bytes() == FILES[file]
    parts = [part for part in FILES if part.startswith("BF16/")] if "BF16" in file else [file]
    folder = path.parents[file.count("/")]
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*.gguf")) == parts
    hub.asked.clear()
    assert fetched(name) == path
    assert hub.asked == []


@pytest.mark.parametrize(
    "name", ["org/upper", "org/upper:m-Q5_0.GGUF", "https://huggingface.co/org/upper/blob/main/m-Q5_0.GGUF"]
)
def test_the_case_of_gguf_does_not_matter(hub: Hub, name: str) -> None:
    hub.repos["org/upper"] = {"m-Q5_0.GGUF": b"GGUF"}
    path = fetched(name)
    assert path.name == "m-Q5_0.GGUF"
    assert [model.folder for model in list_models() if model.cached] == [path]


def test_a_wrong_quantisation_is_answered_with_those_that_are_there(hub: Hub) -> None:
    with pytest.raises(ModelLoadError, match=r"no GGUF file 'Q5_K_M' but BF16, UD-Q2_K_XL, Q4_K_M, Q8_0: .*GGUF:BF16"):
        fetched("org/tiny-GGUF:Q5_K_M")
    assert not any("resolve" in path for path in hub.asked)


def test_without_the_default_one_must_be_named_unless_there_is_one(hub: Hub) -> None:
    hub.repos["org/other"] = {"a-Q5_0.gguf": b"GGUF", "a-Q8_0.gguf": b"GGUF"}
    with pytest.raises(ModelLoadError, match=r"no Q4_K_M, the default, but Q5_0, Q8_0"):
        fetched("org/other")
    hub.repos["org/one"] = {"a-Q5_0.gguf": b"GGUF"}
    assert fetched("org/one").name == "a-Q5_0.gguf"


def test_two_models_of_one_quantisation_are_told_apart_by_their_files(hub: Hub) -> None:
    hub.repos["org/two"] = {"a-Q4_K_M.gguf": b"GGUF a", "b-Q4_K_M.gguf": b"GGUF b"}
    with pytest.raises(ModelLoadError, match=r"a-Q4_K_M, b-Q4_K_M"):
        fetched("org/two:Q4_K_M")
    assert fetched("org/two:b-Q4_K_M").read_bytes() == b"GGUF b"


def test_a_repository_that_lacks_a_part_is_refused(hub: Hub) -> None:
    hub.repos["org/cut"] = {"a-Q4_K_M-00001-of-00002.gguf": b"GGUF"}
    with pytest.raises(ModelLoadError, match="lacks parts: the repository has 1 of 2"):
        fetched("org/cut")


def test_a_part_that_is_not_here_yet_is_fetched(hub: Hub) -> None:
    path = fetched("org/tiny-GGUF:BF16")
    second = path.with_name("tiny-BF16-00002-of-00002.gguf")
    second.unlink()
    assert fetched("org/tiny-GGUF:BF16") == path
    assert second.is_file()


def test_a_tag_of_a_repository_without_gguf_is_refused(hub: Hub) -> None:
    hub.repos["org/plain"] = {"config.json": b"{}", "model.safetensors": b"x"}
    with pytest.raises(ModelLoadError, match="org/plain has no GGUF file: leave :Q4_K_M out"):
        fetched("org/plain:Q4_K_M")


def test_each_file_is_listed_and_removed_for_itself(hub: Hub) -> None:
    four, eight = fetched("org/tiny-GGUF"), fetched("org/tiny-GGUF:Q8_0")
    assert [model.name for model in list_models() if model.cached] == ["org/tiny-GGUF:Q4_K_M", "org/tiny-GGUF:Q8_0"]
    assert remove("org/tiny-GGUF:Q8_0") == 6
    assert four.is_file()
    assert not eight.exists()
    assert remove("org/tiny-GGUF:Q4_K_M") >= 6
    assert not four.parent.exists()


def test_a_conversion_goes_with_its_file_and_no_other(hub: Hub, tmp_path: Path) -> None:
    for path in (fetched("org/tiny-GGUF"), fetched("org/tiny-GGUF:Q8_0")):
        folder = tmp_path / f"cache/converted/{path.stem}-abc"
        folder.mkdir(parents=True)
        (folder / "converted.json").write_text(json.dumps({"name": path.stem, "source": str(path)}))
    assert remove("org/tiny-GGUF:Q8_0") > 6
    assert [folder.name for folder in (tmp_path / "cache/converted").iterdir()] == ["tiny-Q4_K_M-abc"]


@pytest.mark.parametrize("name", ["hf.co/org/name:Q4_K_M", "https://hf.co/org/name:Q4_K_M/", "org/name:Q4_K_M"])
def test_a_name_is_shown_without_the_hub_s_address(name: str) -> None:
    assert own_name(ModelConfig(model_name=name)) == "org/name:Q4_K_M"


def test_a_path_is_no_name_of_the_hub() -> None:
    for path in ("org/name.gguf", "./org/name", "C:/models/x.gguf", "org", "hf.co/org"):
        assert HubName.parse(path) is None
    with pytest.raises(ModelLoadError, match="is no revision"):
        HubName.parse("org/name@../../x")


def test_a_gguf_model_of_the_hub_is_served_as_the_file_is(hub: Hub, tmp_path: Path) -> None:
    """Without it a name of the hub would be fetched, but not converted."""
    hub.repos["org/bad"] = {"bad-Q4_K_M.gguf": b"no GGUF"}
    with pytest.raises(ModelLoadError, match=r"bad-Q4_K_M\.gguf is not a GGUF file: it begins with b'no G'"):
        fetch(ModelConfig(model_name="org/bad"))
