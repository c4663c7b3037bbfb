"""Without these tests the documents could lack tables: the command measures real models, and reports its failures."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from families import write_checkpoint

from run_gpt.bench.offline_process import Process
from run_gpt.bench.offline_subject import Variant
from run_gpt.config import DEFAULT_MODEL
from run_gpt.errors import SetupError

ROOT = Path(__file__).parents[3]
SAMPLE = ROOT / "tests" / "data" / "alice.txt"
SECONDS = 120


def run(*arguments):
    """Run scripts/benchmark.py, without texts from the network."""
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *arguments, "--data", "none"]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


def test_the_command_fills_the_tables_the_json_and_the_document(tmp_path):
    folder, figures, document = write_checkpoint("llama", tmp_path / "m"), tmp_path / "f.json", tmp_path / "d.md"
    document.write_text("<!-- model: made by scripts/benchmark.py -->\n<!-- end -->\n")
    done = run(
        *(str(folder), "--precision", "fp32", "--generate", "fp32", "--prompt-tokens", "16,2000", "--batch", "1,3"),
        # Many new tokens, since a step of this model is shorter than the time between two streams' first tokens.
        *("--new-tokens", "256", "--repeat", "2", "--text", str(SAMPLE), "--max-tokens", "300"),
        *("--json", str(figures), "--write", str(document), "--markdown"),
    )
    assert done.returncode == 0, done.stderr
    generate, ours = json.loads(figures.read_text())["results"]
    assert generate["loaded"]["runner"] == "transformers"
    for result in (generate, ours):
        assert result["perplexity"]["alice.txt"]["tokens"] == 299
        for case in result["cases"]:
            if case["prompt_tokens"] == 16:
                assert case.get("reason") is None
                assert len(case["prefill_tokens_per_s"]["rounds"]) == 2
                assert case["decode_tokens_per_s"]["median"] > 0
            else:
                assert "exceed the context of 1024" in case["reason"]
    assert "| fp32 | transformers | 16 | 3 |" in done.stdout
    assert "299 tokens of alice.txt" in done.stdout
    assert done.stdout.strip() in document.read_text()


def test_what_cannot_be_loaded_gives_its_reason(tmp_path):
    folder = write_checkpoint("rwkv-raven", tmp_path / "m")
    with pytest.raises(SetupError, match="--compile and --tensor-parallel are for models with a key-value cache"):
        Process(Variant(str(folder), "fp32", "generic", compile=True, device="cpu"))


def test_a_process_that_dies_gives_its_reason(tmp_path):
    process = Process(Variant(str(write_checkpoint("llama", tmp_path / "m")), "fp32", device="cpu"))
    try:
        with pytest.raises(SetupError, match="--window 5000"):  # a failed call does not end the process
            process.call("perplexity", text="some text", window=5000, stride=None, max_tokens=0)
        assert process.call("memory")["peak"] > 0
        os.kill(process._process.pid, signal.SIGKILL)
        with pytest.raises(SetupError, match="ended with code -9"):
            process.call("memory")
        assert not process.alive
    finally:
        process.close()


def noted_reuse(subject):
    """Record the number of cached tokens of each stream from now on; returns the list."""
    submit, reused = subject._engine.submit, []

    async def noting(request):
        first = True
        async for event in submit(request):
            if first:
                reused.append(event.cached_tokens)
                first = False
            yield event

    subject._engine.submit = noting
    return reused


def test_the_default_model_is_measured_and_reads_english():
    subject = Variant(DEFAULT_MODEL, "bf16", device="cpu", max_running=4).load()
    try:
        subject.warm_up(32, 4)
        reused = noted_reuse(subject)
        found = subject.measure(1, 32, 4, 16)
        # Prompts are new in prefill, also after a warm-up, and kept for decoding.
        assert [sorted(reused[i : i + 4]) for i in (0, 4)] == [[0] * 4, [32] * 4]
        assert found["prefill"] > 0
        assert found["decode_step"] > 0
        scored = subject.perplexity(SAMPLE.read_text(), None, None, 600)
        assert {name: scored[name] for name in ("tokens", "window", "stride")} == {
            "tokens": 599,
            "window": 1024,
            "stride": 512,
        }
        assert 10 < scored["perplexity"] < 40
    finally:
        subject.model.shutdown()


@pytest.mark.parametrize("arguments", [("--precision", "fp33"), ("--write", "none.md"), ("--text", "none.txt")])
def test_a_wrong_option_is_one_line(arguments):
    done = run(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("benchmark.py: --")
    assert done.stderr.count("\n") == 1
