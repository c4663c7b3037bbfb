"""Without this test a Ctrl-C in the first second of a command could show a traceback."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys
from run_gpt.cli import main

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[-1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
main()
"""


@pytest.mark.parametrize("module", ["run_gpt.cli.app", "run_gpt.cli.serve"])
def test_ctrl_c_while_a_command_is_imported_ends_it_without_a_word(module: str) -> None:
    command = [sys.executable, "-c", PROGRAM, "serve", module]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
