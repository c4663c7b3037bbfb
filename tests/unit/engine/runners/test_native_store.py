"""Without these tests, a damaged kernel library could end every start, and a stranger's could run in the server."""

import _ctypes
import os
import tempfile
from pathlib import Path

import pytest

from run_gpt.engine.runners.native import build, store
from run_gpt.errors import SetupError

LIBRARY = Path(_ctypes.__file__).read_bytes()
"""Any library that loads."""
COMPILER = """#!/bin/sh
[ "$1" = --version ] && exec echo 1
echo compiled >> {log}
while [ "$1" != -o ]; do shift; done
cp {library} "$2"
"""


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the compiler by one that counts its runs in this file."""
    log, compiler = tmp_path / "log", tmp_path / "compiler"
    log.touch()
    compiler.write_text(COMPILER.format(log=log, library=_ctypes.__file__))
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    for cached in (build.built, build._name, build.compiler):
        cached.cache_clear()
    yield log
    for cached in (build.built, build._name, build.compiler):
        cached.cache_clear()


def runs(compiled: Path) -> int:
    return len(compiled.read_text().splitlines())


def build_again(folder: Path) -> Path:
    build.built.cache_clear()
    return build.built(folder)


needs_cpu = pytest.mark.skipif(build.unsupported() is not None, reason="the kernels do not run here")


@needs_cpu
@pytest.mark.parametrize(
    "harm",
    [
        lambda file: os.truncate(file, 4096),
        lambda file: os.truncate(file, 0),
        lambda file: file.write_bytes(os.urandom(file.stat().st_size)),
        lambda file: file.write_bytes(LIBRARY),
        lambda file: file.write_bytes(file.read_bytes() + b"\0"),
        lambda file: file.chmod(0o666),
        lambda file: (file.rename(file.with_name("other")), file.symlink_to("other")),
        lambda file: (file.unlink(), os.mkfifo(file)),
    ],
    ids=["truncated", "empty", "garbage", "no sum", "longer", "writable", "link", "pipe"],
)
def test_a_library_that_is_not_whole_or_not_ours_is_compiled_anew(harm, compiled, tmp_path, caplog):
    folder = tmp_path / "kernels"
    assert build.built(folder).read_bytes() == LIBRARY
    assert build_again(folder).read_bytes() == LIBRARY
    assert runs(compiled) == 1
    (file,) = folder.glob("*.so")
    harm(file)
    assert build_again(folder).read_bytes() == LIBRARY
    assert runs(compiled) == 2
    assert str(file) in caplog.text
    assert build_again(folder).read_bytes() == LIBRARY
    assert runs(compiled) == 2


@needs_cpu
def test_a_folder_that_others_may_write_is_left_for_one_of_our_own(compiled, tmp_path, caplog):
    folder = tmp_path / "kernels"
    build.built(folder)
    folder.chmod(0o777)
    build_again(folder)
    assert runs(compiled) == 2
    assert f"{folder} may be written by others" in caplog.text
    (kept,) = (tmp_path / "own").rglob("*.so")
    assert kept.stat().st_mode & 0o777 == 0o600
    build_again(folder)
    assert runs(compiled) == 2


@needs_cpu
def test_a_place_where_nothing_can_be_kept_costs_a_compilation_at_each_start_and_no_more(compiled, tmp_path, caplog):
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "own" / f"rungpt-{os.geteuid()}").touch()
    for run in (1, 2):
        assert build_again(file / "kernels").read_bytes() == LIBRARY
        assert runs(compiled) == run
    assert "are compiled at each start" in caplog.text
    assert "RUNGPT_CACHE" in caplog.text


@needs_cpu
def test_a_full_disk_does_not_cost_the_kernels(compiled, tmp_path, monkeypatch, caplog):
    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    folder = tmp_path / "kernels"
    assert build.built(folder).read_bytes() == LIBRARY
    assert "No space left" in caplog.text
    assert not [path for path in folder.iterdir() if not path.name.endswith(".lock")]


def test_a_library_that_does_not_load_is_an_error_in_one_line():
    with pytest.raises(SetupError, match="the native kernels cannot be loaded"):
        store.in_memory(b"nothing", "kernels.so")
