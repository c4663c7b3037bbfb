"""Without this test each of several replicas could compile the kernels, and so prolong their first start many times."""

import hashlib
import os
import subprocess
import sys

import pytest

from run_gpt.engine.runners.native.build import built, unsupported
from run_gpt.models.cache import cache_root

PROCESSES = 3
# Prints its version like a compiler; otherwise waits until all processes have started, and copies a compiled library.
COMPILER = """#!/bin/sh
[ "$1" = --version ] && exec echo 1
echo compiled >> {folder}/log
until [ $(ls {folder}/here | wc -l) -eq {processes} ]; do :; done
while [ "$1" != -o ]; do shift; done
cp {library} "$2"
"""
PROCESS = """
import hashlib, pathlib, sys
from run_gpt.engine.runners.native.build import built
pathlib.Path({folder!r}, "here", sys.argv[1]).touch()
print(hashlib.sha256(built(pathlib.Path({folder!r}, "kernels")).read_bytes()).hexdigest())
"""


@pytest.mark.skipif(unsupported() is not None, reason="the kernels do not run here")
def test_of_processes_that_start_together_one_compiles(tmp_path):
    (tmp_path / "here").mkdir()
    compiler = tmp_path / "compiler"
    library = tmp_path / "library.so"
    library.write_bytes(built(cache_root() / "kernels").read_bytes())
    compiler.write_text(COMPILER.format(folder=tmp_path, processes=PROCESSES, library=library))
    compiler.chmod(0o755)
    command = [sys.executable, "-c", PROCESS.format(folder=str(tmp_path))]
    processes = [
        subprocess.Popen(
            [*command, str(number)], env={**os.environ, "CXX": str(compiler)}, stdout=subprocess.PIPE, text=True
        )
        for number in range(PROCESSES)
    ]
    outputs = {process.communicate(timeout=60)[0] for process in processes}
    assert outputs == {hashlib.sha256(library.read_bytes()).hexdigest() + "\n"}
    assert list((tmp_path / "kernels").glob("*.so"))
    assert (tmp_path / "log").read_text() == "compiled\n"
