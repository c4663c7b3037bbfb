"""Compilation of the kernels for this machine, once. The library is kept in the cache."""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from run_gpt.engine.runners.native import store
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


def ready(folder: Path) -> bool:
    """Return True if the library is in `folder`, so that `built` takes no time, unless it is damaged.

    Raises SetupError if this machine cannot run the kernels.
    """
    _check_machine()
    return (folder / _name("native")).is_file()


@cache
def built(folder: Path, target: str = "native") -> Path:
    """Return a path of the library, for this process only; compile it if there is no sound one, in about 10 s.

    If several processes start together, such as replicas, one compiles it and the others wait. A folder that others may
    write, or we may not, is not used: see `store.home`. `target`: the compiler's name of the CPUs to compile for; the
    default is this CPU. Raises SetupError with the reason and the compiler's message.
    """
    _check_machine()
    name = _name(target)
    if (home := store.home(folder)) is None:
        return store.in_memory(_compiled(name, target), name)
    file = home / name
    with store.locked(file):
        if (kept := store.read(file)) is not None:
            return store.in_memory(kept, name)
        library = _compiled(name, target)
        path = store.in_memory(library, name)  # a library that does not load is not kept
        store.write(file, library)
    return path


@cache
def layout() -> str:
    """Return a text that changes with the layout of packed weights: a hash of the code that packs, and of the CPU."""
    sources = [file.read_text() for file in sorted((*SOURCE.parent.glob("*.h"), SOURCE, *SOURCE.parent.glob("*.py")))]
    return hashlib.sha256("\n".join((*sources, *_cpu_flags())).encode()).hexdigest()


def _check_machine() -> None:
    if reason := unsupported():
        raise SetupError(f"the native kernels cannot run here: {reason}")


def _compiled(name: str, target: str) -> bytes:
    compiler = str(_compiler())  # the callers have checked that there is one
    try:
        with tempfile.TemporaryDirectory(prefix="rungpt-kernels-") as scratch:
            made = Path(scratch, name)
            command = [compiler, *_options(target), str(SOURCE), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
            if done.returncode == 0:
                return made.read_bytes()
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"the native kernels cannot be compiled: {error}") from error
    told = [line for line in done.stderr.splitlines() if "error" in line or "No space" in line]
    said = "\n".join(told) or done.stderr[-500:]
    raise SetupError(f"the native kernels cannot be compiled with {compiler}: {said}")


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


@cache
def _name(target: str) -> str:
    """Return the library's file name, with a hash of source, options, compiler and CPU: machines may share a cache."""
    version = subprocess.run([str(_compiler()), "--version"], capture_output=True, text=True, check=False).stdout
    sources = [file.read_text() for file in sorted((*SOURCE.parent.glob("*.h"), SOURCE))]
    parts = ("with a sum", *sources, *_options(target), version, *_cpu_flags())
    identity = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return f"kernels-{identity}.so"
