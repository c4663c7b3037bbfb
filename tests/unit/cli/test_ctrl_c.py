"""Without this test a Ctrl-C in the first second of a command could show a traceback."""

import subprocess
import sys

PROGRAM = """
import os, signal, sys
from run_gpt.cli import main

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "run_gpt.cli.app":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
main()
"""


def test_ctrl_c_while_a_command_is_imported_ends_it_without_a_word() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
