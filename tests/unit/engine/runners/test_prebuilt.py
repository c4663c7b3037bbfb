"""Without these tests a wheel's kernels could stop at an unknown instruction, be another version's, or a stranger's."""

import _ctypes
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from run_gpt.config import EngineConfig
from run_gpt.engine.runners import native
from run_gpt.engine.runners.native import build, store, targets
from run_gpt.errors import SetupError
from run_gpt.local import kernels

LIBRARY = Path(_ctypes.__file__).read_bytes()
"""Any library that loads."""
_HASWELL = "fpu sse4_2 cx16 movbe popcnt xsave avx f16c abm bmi1 avx2 fma bmi2"
_SKYLAKE_X = f"{_HASWELL} avx512f avx512dq avx512cd avx512bw avx512vl"
_CASCADE_LAKE = f"{_SKYLAKE_X} avx512_vnni"
_ZEN_4 = f"{_CASCADE_LAKE} avx512_bf16 avx512_vbmi2"
CPUS = {
    "Sandy Bridge": ("fpu sse4_2 cx16 popcnt xsave avx", None),
    "Haswell": (_HASWELL, "avx2"),
    "Zen 3": (f"{_HASWELL} vaes", "avx2"),
    "Alder Lake": (f"{_HASWELL} avx_vnni", "avx2"),
    "a guest that hides FMA": (_HASWELL.replace(" fma", ""), None),
    "Skylake-X": (_SKYLAKE_X, "avx2"),
    "Cascade Lake": (_CASCADE_LAKE, "avx512"),
    "Zen 4": (_ZEN_4, "avx512-bf16"),
    "Sapphire Rapids": (f"{_ZEN_4} amx_bf16 amx_tile amx_int8", "amx"),
    "a guest that hides AMX": (_ZEN_4, "avx512-bf16"),
}


@pytest.mark.parametrize(("flags", "best"), CPUS.values(), ids=CPUS)
def test_the_fastest_build_that_a_cpu_runs_is_taken(flags: str, best: str | None) -> None:
    cpuinfo = f"processor\t: 0\nmodel name\t: X: flags\nflags\t\t: {flags}\nbugs\t\t:\n\nprocessor\t: 1\nflags\t\t:\n"
    fitting = targets.fitting(targets.flags_of(cpuinfo))
    assert (fitting[0].name if fitting else None) == best
    assert not fitting or fitting[-1].name == "avx2"


def test_a_machine_that_does_not_tell_takes_none() -> None:
    assert targets.fitting(targets.flags_of("processor\t: 0\n")) == ()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the prebuilt kernels of an installed package, with builds for AVX-512 and AVX2 in it.

    The machine is a Zen 4 without a compiler.
    """
    folder = tmp_path / "prebuilt"
    folder.mkdir()
    for chosen in targets.BUILDS[1:]:
        if chosen.name != "avx512":
            (folder / chosen.file_name).write_bytes(targets.with_sum(LIBRARY))
    monkeypatch.setattr(targets, "PREBUILT", folder)
    monkeypatch.setattr(build, "cpu_flags", lambda: frozenset(_ZEN_4.split()))
    monkeypatch.setattr(build, "platform", SimpleNamespace(system=lambda: "Linux", machine=lambda: "x86_64"))
    monkeypatch.setattr(build, "compiler", lambda: None)
    build.prebuilt.cache_clear()
    yield folder
    build.prebuilt.cache_clear()


def found() -> str | None:
    build.prebuilt.cache_clear()
    return taken[0] if (taken := build.prebuilt()) else None


def library(folder: Path, name: str) -> Path:
    (file,) = folder.glob(f"kernels-{name}-*.so")
    return file


def test_without_a_compiler_they_are_used(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("run_gpt.engine.runners.native.binding.Kernels", lambda path, origin: (path, origin))
    path, origin = native.building(tmp_path / "kernels").result(0)
    assert path.read_bytes() == LIBRARY
    assert origin == "prebuilt for avx512-bf16"
    assert not (tmp_path / "kernels").exists()
    assert (build.unsupported(), build.unsupported("prebuilt")) == (None, None)


@pytest.mark.parametrize(
    "harm",
    [
        lambda file: os.truncate(file, 4096),
        lambda file: file.write_bytes(LIBRARY),
        lambda file: file.write_bytes(targets.with_sum(b"no library")),
        lambda file: file.chmod(0o666),
        lambda file: (file.rename(file.with_name("other")), file.symlink_to("other")),
    ],
    ids=["truncated", "no sum", "no library", "writable", "link"],
)
def test_one_that_is_not_whole_or_not_ours_is_left_out(harm, package: Path, caplog) -> None:
    file = library(package, "avx512-bf16")
    harm(file)
    assert found() == "avx2"
    assert file.name in caplog.text


def test_one_of_other_sources_is_never_used(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = package.parent / "kernels.cpp"
    source.write_text("// changed\n")
    monkeypatch.setattr(targets, "SOURCE", source)
    assert found() is None


def test_the_owner_of_the_package_may_write_them_and_no_stranger(package: Path, monkeypatch) -> None:
    code, others = Path(build.SOURCE).stat(), 12345
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    told = {"st_mode": stat.S_IFREG | 0o644, "st_gid": code.st_gid}
    for owner, ours in ((code.st_uid, True), (0, True), (54321, True), (others, False)):
        assert store._is_ours(SimpleNamespace(st_uid=owner, **told), None, code.st_uid) is ours
    real = os.fstat

    def foreign(fd: int) -> os.stat_result:
        info = real(fd)
        return os.stat_result((*info[:4], others, *info[5:]))

    monkeypatch.setattr(os, "fstat", foreign)
    assert found() is None


def test_without_them_and_without_a_compiler_the_reason_is_given(package: Path, tmp_path: Path, caplog) -> None:
    for file in package.iterdir():
        file.unlink()
    assert found() is None
    assert kernels.start_kernels(EngineConfig(), "cpu", tmp_path) is None
    assert "there is no C++ compiler: install g++" in caplog.text
    with pytest.raises(SetupError, match="--runner native: this installation has no prebuilt kernels"):
        kernels.start_kernels(EngineConfig(runner="native", kernels="prebuilt"), "cpu", tmp_path)


def test_compiled_ones_may_be_asked_for(package: Path, tmp_path: Path) -> None:
    assert found() == "avx512-bf16"
    with pytest.raises(SetupError, match=r"--runner native: there is no C\+\+ compiler"):
        kernels.start_kernels(EngineConfig(runner="native", kernels="compiled"), "cpu", tmp_path)
