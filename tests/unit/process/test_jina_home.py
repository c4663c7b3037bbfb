"""Without this test, a server of a service user, whose home folder cannot be written, would end in a traceback."""

import os
import subprocess
import sys


def test_a_machine_where_nothing_can_be_written_is_told_what_to_set() -> None:
    env = os.environ | {"HOME": "/proc/none", "RUNGPT_CACHE": "/proc/none"}
    command = [sys.executable, "-c", "import run_gpt.process._jina"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)
    assert done.returncode != 0
    assert "set RUNGPT_CACHE to a folder that can be" in done.stderr.splitlines()[-1]
