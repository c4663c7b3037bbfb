"""Compilation of the kernels for this machine, once. The library is kept in the cache."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from filelock import FileLock

from run_gpt.errors import SetupError

SOURCE = Path(__file__).with_name("kernels.cpp")
"""Source file, which includes the headers beside it."""
NEEDS = {"avx2", "fma", "f16c"}
"""Features that a CPU must have. AVX-512 with VNNI and bf16, and AMX, are used if available."""
_OPTIONS = (
    *("-std=c++20", "-O3", "-shared", "-fPIC", "-pthread", "-Wno-psabi"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
_SECONDS = 300


def unsupported() -> str | None:
    """Return the reason why this machine cannot build or run the kernels; None if it can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"they are written for Linux on x86-64, and this is {platform.system()} on {platform.machine()}"
    if missing := NEEDS - set(_cpu_flags()):
        return f"this CPU has no {', '.join(sorted(missing))}"
    if _compiler() is None:
        return "there is no C++ compiler: install g++ (Debian: apt install g++), or name one in $CXX"
    return None


def library(folder: Path, target: str = "native") -> Path:
    """Return the path in `folder` of the library, compiled or not yet. `target`: see `built`.

    Raises SetupError if this machine cannot run the kernels.
    """
    if reason := unsupported():
        raise SetupError(f"the native kernels cannot run here: {reason}")
    return folder / f"kernels-{_identity(_options(target))}.so"


@cache
def built(folder: Path, target: str = "native") -> Path:
    """Return the compiled library in `folder`; compile it if necessary, in about 10 s.

    If several processes start together, such as replicas, one compiles it and the others wait. `target`: the compiler's
    name of the CPUs to compile for; the default is this CPU. Raises SetupError with the reason and the compiler's
    message.
    """
    wanted = library(folder, target)
    if wanted.is_file():
        return wanted
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{wanted.name}.lock"):
        if not wanted.is_file():
            _compile(wanted, target)
    return wanted


def _compile(wanted: Path, target: str) -> None:
    compiler = str(_compiler())  # `library` has checked that there is one
    with tempfile.TemporaryDirectory(dir=wanted.parent) as scratch:
        made = Path(scratch, wanted.name)
        command = [compiler, *_options(target), str(SOURCE), "-o", str(made)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SetupError(f"the native kernels cannot be compiled: {error}") from error
        if done.returncode:
            said = "\n".join(line for line in done.stderr.splitlines() if "error" in line) or done.stderr[-500:]
            raise SetupError(f"the native kernels cannot be compiled with {compiler}: {said}")
        ctypes.CDLL(str(made))  # a library that does not load must not stay in the cache
        made.replace(wanted)


@cache
def _compiler() -> str | None:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    return None


@cache
def _cpu_flags() -> tuple[str, ...]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return tuple(sorted(line.split(":", 1)[1].split()))
    return ()


def _options(target: str) -> list[str]:
    return [*_OPTIONS, f"-march={target}"]


def _identity(options: Sequence[str]) -> str:
    """Return a hash of the source, the options, the compiler and the CPU, because machines may share a cache."""
    version = subprocess.run([str(_compiler()), "--version"], capture_output=True, text=True, check=False).stdout
    sources = [file.read_text() for file in sorted((*SOURCE.parent.glob("*.h"), SOURCE))]
    parts = (*sources, *options, version, *_cpu_flags())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
