"""Packed weights on disk: what was written is found, and nothing else."""

import os
from pathlib import Path

import pytest

from run_gpt.models import list_models, packed_files, remove, show
from run_gpt.models.cache import ModelCache
from run_gpt.models.packed_files import PackedFile, packed_sources


class Memory:
    """Memory as the kernels have it, in a bytearray."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)

    @property
    def size(self) -> int:
        return len(self.content)

    def view(self) -> memoryview:
        return memoryview(self.content)

    def map(self, file: int) -> None:
        self.content[:] = os.pread(file, self.size, 0)

    def clear(self) -> None:
        self.content[:] = bytes(self.size)


CONTENT = bytes(range(256)) * 5


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep small weights, in several parts."""
    monkeypatch.setattr(packed_files, "LEAST_BYTES", 1)
    monkeypatch.setattr(packed_files, "_PART", 512)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"header and weights")
    return folder


def place(cache: Path, model: Path, form: str = "a form") -> PackedFile:
    return PackedFile(ModelCache(cache), model, "bit4-joined", form)


def kept(cache: Path, model: Path, form: str = "a form") -> bytes | None:
    """Return what a later start finds."""
    memory = Memory(bytes(len(CONTENT)))
    if place(cache, model, form).restore(memory):
        return bytes(memory.content)
    assert not any(memory.content)
    return None


def test_what_was_kept_is_found_again(cache: Path, model: Path) -> None:
    assert kept(cache, model) is None
    place(cache, model).keep(Memory(CONTENT))
    assert kept(cache, model) == CONTENT


def test_another_form_or_changed_files_are_packed_anew_and_replace_the_older_ones(cache: Path, model: Path) -> None:
    place(cache, model).keep(Memory(CONTENT))
    assert kept(cache, model, "another form") is None
    for file, text in (("config.json", '{"a": 1}'), ("model.safetensors", "header and others!")):
        (model / file).write_text(text)
        assert kept(cache, model) is None
        place(cache, model).keep(Memory(CONTENT))
        assert kept(cache, model) == CONTENT
    assert len(packed_sources(ModelCache(cache))) == 1


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "record"])
def test_damaged_weights_are_never_used_and_replaced(cache: Path, model: Path, damage: str, caplog) -> None:
    place(cache, model).keep(Memory(CONTENT))
    (file,) = cache.glob("packed/*/weights")
    if damage == "cut":
        os.truncate(file, 100)
    elif damage == "changed":
        file.write_bytes(CONTENT[:-1] + b"!")
    elif damage == "gone":
        file.unlink()
    else:
        file.with_name("packed.json").write_text("[]")
    assert kept(cache, model) is None
    assert "packed anew" in caplog.text
    place(cache, model).keep(Memory(CONTENT))
    assert kept(cache, model) == CONTENT


def test_a_full_disk_is_one_line(cache: Path, model: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: _Usage)
    memory = Memory(CONTENT)
    place(cache, model).keep(memory)
    assert memory.content == CONTENT
    assert [record.getMessage()[:40] for record in caplog.records] == ["the next start packs the weights again: "]
    assert kept(cache, model) is None


class _Usage:
    free = 10


def test_small_weights_are_not_kept(cache: Path, model: Path, monkeypatch) -> None:
    monkeypatch.setattr(packed_files, "LEAST_BYTES", len(CONTENT) + 1)
    place(cache, model).keep(Memory(CONTENT))
    assert kept(cache, model) is None


def test_they_count_to_the_model_and_go_with_it(cache: Path, model: Path) -> None:
    before = show(str(model)).disk_bytes
    place(cache, model).keep(Memory(CONTENT))
    assert show(str(model)).disk_bytes > before + len(CONTENT)
    assert all(one.disk_bytes == 0 for one in list_models())
    assert remove(str(model)) > len(CONTENT)
    assert show(str(model)).disk_bytes == before
    assert not packed_sources(ModelCache(cache))
