"""Without these tests `rungpt bench` could accept what it cannot measure, or write an API key into a file."""

import csv
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from run_gpt.bench.document import END, SERVER
from run_gpt.bench.protocol import APIS
from run_gpt.bench.summary import FORMULAS
from run_gpt.cli.app import app
from run_gpt.cli.bench import ApiName
from run_gpt.errors import RunGPTError

KEY = "secret-key-of-the-test"


def bench(*arguments: str, **env: str) -> Any:
    return CliRunner(env=env).invoke(app, ["bench", *arguments])


def test_the_commands_names_of_apis_are_those_there_are() -> None:
    assert list(ApiName) == list(APIS)


def test_results_go_to_stdout_and_files_and_the_key_nowhere(scripted: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    script = scripted()
    files = {name: tmp_path / f"a.{name}" for name in ("json", "csv", "html")}
    options = [text for name, path in files.items() for text in (f"--{name}", str(path))]
    (document := tmp_path / "a.md").write_text(f"before\n{SERVER.begin}\nold\n{END}\nafter\n")
    options += ["--write", str(document)]
    options += ["--png", str(tmp_path / "png"), "--concurrency", "1,2", "--requests", "4", "--warmup", "1"]
    done = bench("serve", "--endpoint", script.url, *options, RUNGPT_API_KEY=KEY)
    assert done.exit_code == 0, done.output
    assert "| concurrency 2 |" in done.stdout
    assert "TTFT = time of the first event" in done.stdout
    assert "concurrency 1 ..." in done.stderr
    assert KEY in script.headers[0]
    assert "old" not in (text := document.read_text())
    assert "| concurrency 2 |" in text
    assert all((document.parent / address).is_file() for address in re.findall(r"!\[.*\]\((.*)\)", text))
    assert text.count("![") == 4
    written = [*files.values(), document, *(tmp_path / "png").iterdir()]
    assert len(written) == 8
    assert all(KEY.encode() not in path.read_bytes() for path in written)
    assert KEY not in done.output

    compared = bench("compare", str(files["json"]), str(files["json"]))
    assert compared.exit_code == 0, compared.output
    assert "B / A" in compared.stdout
    assert "1.000  " in compared.stdout


def test_a_sweep_says_where_it_ended(scripted: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    done = bench("serve", "--endpoint", scripted().url, "--sweep", "--requests", "4", "--json", str(path))
    assert done.exit_code == 0, done.output
    assert "Saturated at concurrency 1: 2 is more than the bounds of this run allow" in done.stdout
    assert json.loads(path.read_text())["saturation"]["level"] == {"kind": "closed", "value": 1.0, "streamed": True}


def test_streams_and_whole_answers_stand_side_by_side(scripted: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    options = ["--answers", "both", "--concurrency", "1,2", "--requests", "4", "--csv", str(path)]
    done = bench("serve", "--endpoint", scripted().url, *options)
    assert done.exit_code == 0, done.output
    assert "streamed / whole" in done.stdout
    assert "| concurrency 2, whole |" in done.stdout
    with path.open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["level"], line["answers"]) for line in lines] == [
        (level, answers) for level in ("1.0", "2.0") for answers in ("streamed", "whole")
    ]
    assert [bool(line["ttft_p50"]) for line in lines] == [True, False] * 2
    assert float(lines[0]["events_per_answer"]) == 5
    if Path("/proc/self/stat").exists():  # the scripted server is in this process
        assert "CPU, ms/token: client" in done.stdout
        assert float(lines[0]["server_cpu_ms_per_token"]) >= 0


def test_a_server_whose_processes_cannot_be_seen_is_measured_without(
    scripted: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("run_gpt.bench.processes.PROC", tmp_path)
    done = bench("serve", "--endpoint", scripted().url, "--concurrency", "1", "--requests", "4")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("The server's CPU time is left out") == 1


def test_failures_are_shown_with_an_example(scripted: Callable[..., Any]) -> None:
    done = bench("serve", "--endpoint", scripted(behaviours=("ok", "429")).url, "--concurrency", "1", "--requests", "4")
    assert "2 (2 status 429)" in done.stdout
    assert "status 429, for example:" in done.stderr


def test_a_key_that_a_server_repeats_is_not_shown(scripted: Callable[..., Any]) -> None:
    script = scripted(behaviours=("401",))
    done = bench("serve", "--endpoint", script.url, RUNGPT_API_KEY=KEY)
    assert isinstance(done.exception, RunGPTError)
    assert "status 401" in done.exception.message
    assert KEY in script.headers[0]
    assert KEY not in done.exception.message


def test_the_formulas_are_printed_without_a_server() -> None:
    assert bench("serve", "--formulas").stdout.strip() == FORMULAS


def test_an_interrupted_benchmark_keeps_what_it_has(scripted: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    command = [sys.executable, "-m", "run_gpt.cli", "bench", "serve", "--endpoint", scripted().url, "--warmup", "0"]
    command += ["--concurrency", "1", "--rate", "1", "--requests", "20", "--json", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "rate 1/s" not in (line := process.stderr.readline()):
            assert line
        process.send_signal(signal.SIGINT)
        output, messages = process.communicate(timeout=30)
    assert process.returncode == 130, messages
    assert "Interrupted" in messages
    assert "| concurrency 1 |" in output
    assert [load["level"]["kind"] for load in json.loads(path.read_text())["loads"]] == ["closed"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--concurrency", "x"], "--concurrency x: write different numbers"),
        (["--concurrency", "1.5"], "write whole numbers"),
        (["--rate", "0"], "--rate 0"),
        (["--concurrency", "4,4"], "different"),
        (["--sweep", "--concurrency", "1,2"], "--sweep begins at one load"),
        (["--concurrency", "300"], "raise --requests"),
        (["--extra-body", "[]"], "--extra-body"),
        (["--extra-body", "{"], "no JSON"),
        (["--endpoint", "ftp://a"], "an endpoint is"),
        (["--endpoint", "grpc://127.0.0.1:1", "--api", "openai-chat"], "over gRPC use --api chat"),
        (["--sweep", "--answers", "both"], "streamed or whole"),
        (["--server-pid", "999999999", "--endpoint", "grpc://127.0.0.1:1"], "no such process"),
        (["--json", "/no/such/folder/a.json"], "make it first"),
        (["--prompt-words", "x"], "--prompt-words x"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_sent(arguments: list[str], says: str) -> None:
    done = bench("serve", *arguments)
    assert isinstance(done.exception, RunGPTError)
    assert says in done.exception.message
    assert "\n" not in done.exception.message
