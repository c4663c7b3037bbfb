"""Guarantees of the cache: every model in it is complete, and two processes never write the same model at once."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from run_gpt.errors import DownloadError
from run_gpt.models.cache import ModelCache, cache_root, folder_bytes, is_disk_full


def test_the_configuration_goes_before_the_environment(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_root() == cache
    assert cache_root(tmp_path / "mine") == tmp_path / "mine"
    monkeypatch.delenv("RUNGPT_CACHE")
    assert cache_root() == Path.home() / ".cache" / "rungpt"


def test_an_error_leaves_nothing_half_written(cache: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").write_bytes(b"x" * 100)
        raise RuntimeError("the network is gone")

    with pytest.raises(RuntimeError, match="the network is gone"):
        ModelCache().ensure("files/one", fill)
    assert list((cache / "files").iterdir()) == []


def test_what_a_killed_process_left_is_thrown_away(cache: Path) -> None:
    left = cache / "files" / ".one.partial"
    left.mkdir(parents=True)
    (left / "half").touch()
    folder = ModelCache().ensure("files/one", lambda folder: (folder / "whole").touch())
    assert [file.name for file in folder.iterdir()] == ["whole"]
    assert not left.exists()


HALF = """
import pathlib, time
from run_gpt.models.cache import ModelCache

def fill(folder):
    (folder / "half").write_bytes(b"x" * 100)
    print("half", flush=True)
    time.sleep(600)

ModelCache().ensure("files/one", fill)
"""


def test_a_process_that_is_killed_leaves_nothing_that_looks_whole(cache: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HALF], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
    finally:
        process.kill()
        process.communicate()
    models = ModelCache()
    assert models.get("files/one") is None
    assert models.keys("files") == []
    folder = models.ensure("files/one", lambda folder: (folder / "whole").touch())  # its lock ended with it
    assert [file.name for file in folder.iterdir()] == ["whole"]


def test_a_second_process_waits_for_the_first_and_uses_its_result() -> None:
    started, waits, finish = threading.Event(), threading.Event(), threading.Event()
    fills: list[str] = []

    def slow(folder: Path) -> None:
        fills.append("first")
        started.set()
        assert finish.wait(10)
        (folder / "model").write_text("first")

    def on_progress(step: str, done: int, total: int | None) -> None:
        assert "Waiting for another process" in step
        waits.set()

    first = threading.Thread(target=lambda: ModelCache().ensure("files/one", slow))
    second = threading.Thread(
        target=lambda: ModelCache().ensure("files/one", lambda _: fills.append("second"), on_progress=on_progress)
    )
    first.start()
    assert started.wait(10)
    second.start()
    assert waits.wait(10)
    finish.set()
    first.join(10)
    second.join(10)
    assert fills == ["first"]


def test_too_small_a_disk_is_told_before_the_download(cache: Path) -> None:
    needed = 10**18
    with pytest.raises(DownloadError) as caught:
        ModelCache().ensure("files/one", lambda _: pytest.fail("this must not start"), needed=needed)
    message = caught.value.message
    assert str(needed) in message
    assert "are free in" in message
    assert str(cache) in message
    assert "\n" not in message


def test_a_disk_that_fills_up_is_told_as_such(cache: Path) -> None:
    def fill(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DownloadError, match=r"the disk is full.*are free in .*cache"):
        ModelCache().ensure("files/one", fill, needed=1)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="RUNGPT_CACHE"):
        ModelCache(tmp_path / "file").ensure("files/one", lambda _: None)


def test_remove_gives_back_the_bytes() -> None:
    models = ModelCache()
    folder = models.ensure("files/one", lambda folder: (folder / "model").write_bytes(b"x" * 1000) and None)
    assert folder_bytes(folder) == 1000
    assert models.remove("files/one") == 1000
    assert models.get("files/one") is None
    assert models.remove("files/one") == 0


def test_errors_that_cause_each_other_are_looked_at_once() -> None:
    """A walk through their causes once went round and round, and the start hung without a word."""
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert not is_disk_full(first)
    first.__cause__ = OSError(28, "No space left on device")
    assert is_disk_full(second)


def test_a_user_without_a_home_folder_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNGPT_CACHE")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 987_654)
    with pytest.raises(DownloadError, match="set RUNGPT_CACHE"):
        cache_root()
