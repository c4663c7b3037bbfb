"""Build hook: with RUNGPT_PREBUILT=all, or names of builds such as "avx2 avx512", a wheel carries compiled kernels.

Without the variable, and on other systems than Linux on x86-64, the wheel is pure: kernels are compiled where it runs.
pyproject.toml has all else.
"""

import os
import platform
import re
import runpy
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

NATIVE = Path("run_gpt", "engine", "runners", "native")
LEAST_GLIBC = 28
"""Least minor version of glibc that the tag names: torch's wheels need that of manylinux_2_28, too."""
MOST_GLIBCXX = 25
"""Newest version of libstdc++'s symbols, GLIBCXX_3.4.N, that manylinux_2_28 has."""
targets = runpy.run_path(str(NATIVE / "targets.py"))
runs_kernels = (platform.system(), platform.machine()) == ("Linux", "x86_64")
wanted = os.environ.get("RUNGPT_PREBUILT", "").split() if runs_kernels else []


def compile_build(build) -> bytes:
    """Return the library of a build, with its sum. Ends the installation with the compiler's message."""
    if (compiler := targets["compiler"]()) is None:
        raise SystemExit("RUNGPT_PREBUILT: there is no C++ compiler: install g++, or name one in $CXX")
    with tempfile.TemporaryDirectory() as scratch:
        library = Path(scratch, "kernels.so")
        done = subprocess.run(targets["command"](compiler, build.options, library), stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"RUNGPT_PREBUILT: the build {build.name} cannot be compiled: {done.stderr[-2000:]}")
        return targets["with_sum"](library.read_bytes())


class BuildWithKernels(build_py):
    """Copies the sources, and puts the wanted builds of the kernels beside them."""

    def run(self) -> None:
        super().run()
        folder = Path(self.build_lib, NATIVE, targets["PREBUILT"].name)
        shutil.rmtree(folder, ignore_errors=True)  # those of an earlier build
        if self.editable_mode or not wanted:
            return
        builds = {build.name: build for build in targets["BUILDS"]}
        if unknown := set(wanted) - set(builds) - {"all"}:
            raise SystemExit(f"RUNGPT_PREBUILT: no build {', '.join(sorted(unknown))}: all, or {', '.join(builds)}")
        chosen = [build for name, build in builds.items() if "all" in wanted or name in wanted]
        folder.mkdir()
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for build, library in zip(chosen, threads.map(compile_build, chosen), strict=True):
                (folder / build.file_name).write_bytes(library)


class WheelOfKernels(bdist_wheel):
    """Names the systems that run the kernels, which any Python loads."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tag. It names the glibc that the libraries need, as far as their symbols tell."""
        if self.root_is_pure:
            return super().get_tag()
        libraries = [file.read_bytes() for file in Path(self.bdist_dir, NATIVE).rglob("*.so")]
        glibc = max((int(n) for data in libraries for n in re.findall(rb"GLIBC_2\.(\d+)", data)), default=0)
        glibcxx = max((int(n) for data in libraries for n in re.findall(rb"GLIBCXX_3\.4\.(\d+)", data)), default=0)
        if glibcxx > MOST_GLIBCXX:  # newer than the oldest system's: as new as this system
            glibc = max(glibc, int(platform.libc_ver()[1].split(".")[1]))
        return "py3", "none", f"manylinux_2_{max(glibc, LEAST_GLIBC)}_x86_64"


class KernelDistribution(Distribution):
    """Package that is bound to a kind of machine if it has compiled kernels."""

    def has_ext_modules(self) -> bool:
        """Return True if the wheel carries kernels."""
        return bool(wanted)


setup(distclass=KernelDistribution, cmdclass={"build_py": BuildWithKernels, "bdist_wheel": WheelOfKernels})
