"""Builds of the kernels: the compiler's options, the CPUs that run each, and names that change with the sources.

It imports nothing of the package: setup.py runs this file by itself, for the builds that a wheel carries.
"""

import hashlib
import os
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.cpp")
"""Source file, which includes the headers beside it."""
PREBUILT = Path(__file__).with_name("prebuilt")
"""Folder of the builds that a wheel carries."""
NATIVE = ("-march=native",)
"""Options for the CPU that compiles."""
SUM_BYTES = hashlib.sha256().digest_size
_OPTIONS = (
    *("-std=c++20", "-O3", "-shared", "-fPIC", "-pthread", "-Wno-psabi"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)


@dataclass(frozen=True)
class Build:
    """Kernels for one kind of CPU."""

    name: str
    options: tuple[str, ...]
    flags: frozenset[str]
    """Features that the CPU must have, as /proc/cpuinfo names them."""

    @property
    def file_name(self) -> str:
        """Name of the library, which changes with the sources: one of other sources is not found."""
        return f"kernels-{self.name}-{identity(*self.options)}.so"


_V3 = frozenset(["abm", "avx", "avx2", "bmi1", "bmi2", "cx16", "f16c", "fma", "movbe", "popcnt", "sse4_2", "xsave"])
_VNNI = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"}
_BF16 = _VNNI | {"avx512_bf16"}
_AMX = _BF16 | {"amx_tile", "amx_int8", "amx_bf16"}
_VNNI_OPTIONS = ("-march=x86-64-v4", "-mavx512vnni")
_BF16_OPTIONS = (*_VNNI_OPTIONS, "-mavx512bf16")
BUILDS = (
    Build("amx", (*_BF16_OPTIONS, "-mamx-tile", "-mamx-int8", "-mamx-bf16"), _AMX),
    Build("avx512-bf16", _BF16_OPTIONS, _BF16),
    Build("avx512", _VNNI_OPTIONS, _VNNI),
    Build("avx2", ("-march=x86-64-v3",), _V3),
)
"""Builds for a wheel, the fastest first. A CPU with AVX-512 but without VNNI (Skylake) takes the last."""


def fitting(flags: frozenset[str]) -> tuple[Build, ...]:
    """Return the builds that a CPU with these features runs, the fastest first."""
    return tuple(build for build in BUILDS if build.flags <= flags)


def flags_of(cpuinfo: str) -> frozenset[str]:
    """Return the features of the first CPU in the text of /proc/cpuinfo."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return next((frozenset(value.split()) for name, _, value in lines if name.strip() == "flags"), frozenset())


@cache
def cpu_flags() -> frozenset[str]:
    """Return the features of this CPU."""
    return flags_of(Path("/proc/cpuinfo").read_text())


@cache
def compiler() -> str | None:
    """Return the path of the C++ compiler; None if there is none."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (found := shutil.which(name)):
            return found
    return None


def command(compiler: str, options: tuple[str, ...], library: Path) -> list[str]:
    """Return the command that compiles the kernels into a library."""
    return [compiler, *_OPTIONS, *options, str(SOURCE), "-o", str(library)]


def identity(*parts: str) -> str:
    """Return 16 characters that change with the sources, the common options and the parts."""
    sources = [file.read_text() for file in sorted((*SOURCE.parent.glob("*.h"), SOURCE))]
    return hashlib.sha256("\n".join(("with a sum", *sources, *_OPTIONS, *parts)).encode()).hexdigest()[:16]


def with_sum(library: bytes) -> bytes:
    """Return a library with the sum of its bytes at its end."""
    return library + hashlib.sha256(library).digest()
