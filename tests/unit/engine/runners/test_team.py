"""Without this test work could be lost, done twice, or done before the work that it needs: the text would be wrong."""

import subprocess
from pathlib import Path

import pytest

from run_gpt.engine.runners.native.build import unsupported
from run_gpt.engine.runners.native.targets import SOURCE, compiler

STRESS = Path(__file__).with_name("team_stress.cpp")


@pytest.mark.skipif(unsupported() is not None, reason="the kernels do not run here")
def test_each_item_of_each_loop_is_done_once_and_before_the_next_loop(tmp_path):
    program = tmp_path / "stress"
    options = ["-std=c++20", "-O1", "-march=native", "-fsanitize=thread", "-pthread", "-I", str(SOURCE.parent)]
    subprocess.run([str(compiler()), *options, str(STRESS), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=120)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not know this kernel's address space")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 wrong\n", "")
