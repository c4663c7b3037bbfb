"""Without this test, the command that only watches other processes could take seconds and hundreds of megabytes."""

import subprocess
import sys

HEAVY = ("jina", "torch", "docarray", "pydantic", "grpc")


def test_the_supervisor_imports_nothing_heavy() -> None:
    code = f"import run_gpt.flows, sys; print(sorted({{*{HEAVY}}} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
