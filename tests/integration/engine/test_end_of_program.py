"""A program that closes nothing, as in the quickstart, must end cleanly in the midst of its models' work."""

import subprocess
import sys

import pytest
from families import write_checkpoint

PROGRAM = """
import asyncio, sys
from run_gpt import create_model

models = [
    create_model(model_path=path, precision=precision, runner=runner)
    for path, precision, runner in zip(*[iter(sys.argv[1:])] * 3, strict=True)
]
streams = [model.generate_stream([5, 6], max_new_tokens=900, min_new_tokens=900) for model in models]
for stream in streams:
    next(stream)
print(asyncio.run(models[0].agenerate([5, 6], max_new_tokens=2, min_new_tokens=2)).usage.completion_tokens)
print(models[0].chat("hello", max_new_tokens=2, min_new_tokens=2).usage.completion_tokens)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    names = ("pythia", "llama", "mamba")
    return {name: str(write_checkpoint(name, tmp_path_factory.mktemp(name))) for name in names}


def test_a_program_that_closes_no_model_ends_cleanly_with_every_runner(folders):
    models = [
        *(folders["pythia"], "bf16", "generic"),
        *(folders["llama"], "bf16", "fast"),
        *(folders["mamba"], "fp32", "alone"),
    ]
    ended = subprocess.run([sys.executable, "-c", PROGRAM, *models], capture_output=True, text=True, timeout=180)
    assert (ended.returncode, ended.stdout) == (0, "2\n2\n"), ended.stderr
    assert "terminate" not in ended.stderr
    assert "Traceback" not in ended.stderr
