"""Kernels of this machine: those that the package carries for its kind of CPU, or compiled for it once and kept."""

import logging
import platform
import subprocess
import tempfile
from functools import cache
from hashlib import sha256
from pathlib import Path

from run_gpt.config import KernelSource
from run_gpt.engine.runners.native import store, targets
from run_gpt.engine.runners.native.targets import NATIVE, SOURCE, compiler, cpu_flags
from run_gpt.errors import SetupError

NEEDS = {"avx2", "fma", "f16c"}
"""Features that a CPU must have. AVX-512 with VNNI and bf16, and AMX, are used if available."""
NO_COMPILER = "there is no C++ compiler: install g++ (Debian: apt install g++), or name one in $CXX"
_SECONDS = 300
_log = logging.getLogger("run_gpt")


def unsupported(source: KernelSource = "auto") -> str | None:
    """Return the reason why this machine has no kernels of this source and cannot make them; None if it can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"they are written for Linux on x86-64, and this is {platform.system()} on {platform.machine()}"
    if missing := NEEDS - cpu_flags():
        return f"this CPU has no {', '.join(sorted(missing))}"
    if source != "compiled" and prebuilt() is not None:
        return None
    if source == "prebuilt":
        return "this installation has no prebuilt kernels for its CPU: leave --kernels prebuilt out, or install a wheel"
    return NO_COMPILER if compiler() is None else None


@cache
def prebuilt() -> tuple[str, Path] | None:
    """Return the name of the fastest build that the package carries for this CPU, and a path of it for this process.

    None: there is none of the package's sources. One that others may write, or that is damaged, is left out.
    """
    for build in targets.fitting(cpu_flags()):
        library = store.read(targets.PREBUILT / build.file_name, beside=SOURCE)
        try:
            if library is not None:
                return build.name, store.in_memory(library, build.file_name)
        except SetupError as error:
            _log.warning("%s is not used: %s", build.file_name, error)
    return None


def ready(folder: Path) -> bool:
    """Return True if the library is in `folder`, so that `built` takes no time, unless it is damaged.

    Raises SetupError if this machine cannot compile or run the kernels.
    """
    _check_machine()
    return (folder / _name(NATIVE)).is_file()


@cache
def built(folder: Path, options: tuple[str, ...] = NATIVE) -> Path:
    """Return a path of the library, for this process only; compile it if there is no sound one, in about 25 s.

    If several processes start together, such as replicas, one compiles it and the others wait. A folder that others may
    write, or we may not, is not used: see `store.home`. `options`: the compiler's for the CPUs to compile for; the
    default is this CPU. Raises SetupError with the reason and the compiler's message.
    """
    _check_machine()
    name = _name(options)
    if (home := store.home(folder)) is None:
        return store.in_memory(_compiled(name, options), name)
    file = home / name
    with store.locked(file):
        if (kept := store.read(file)) is not None:
            return store.in_memory(kept, name)
        library = _compiled(name, options)
        path = store.in_memory(library, name)  # a library that does not load is not kept
        store.write(file, library)
    return path


@cache
def layout() -> str:
    """Return a text that changes with the layout of packed weights: a hash of the code that packs, and of the CPU."""
    sources = [file.read_text() for file in sorted((*SOURCE.parent.glob("*.h"), SOURCE, *SOURCE.parent.glob("*.py")))]
    return sha256("\n".join((*sources, *sorted(cpu_flags()))).encode()).hexdigest()


def _check_machine() -> None:
    if reason := unsupported("compiled"):
        raise SetupError(f"the native kernels cannot run here: {reason}")


def _compiled(name: str, options: tuple[str, ...]) -> bytes:
    program = str(compiler())  # the callers have checked that there is one
    try:
        with tempfile.TemporaryDirectory(prefix="rungpt-kernels-") as scratch:
            made = Path(scratch, name)
            command = targets.command(program, options, made)
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
            if done.returncode == 0:
                return made.read_bytes()
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"the native kernels cannot be compiled: {error}") from error
    told = [line for line in done.stderr.splitlines() if "error" in line or "No space" in line]
    said = "\n".join(told) or done.stderr[-500:]
    raise SetupError(f"the native kernels cannot be compiled with {program}: {said}")


@cache
def _name(options: tuple[str, ...]) -> str:
    """Return the library's file name, with a hash of source, options, compiler and CPU: machines may share a cache."""
    version = subprocess.run([str(compiler()), "--version"], capture_output=True, text=True, check=False).stdout
    return f"kernels-{targets.identity(*options, version, *sorted(cpu_flags()))}.so"
