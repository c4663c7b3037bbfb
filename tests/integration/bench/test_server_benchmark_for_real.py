"""Without this test the comparison could refuse RunGPT's own server, or leave out the cost of HTTP over the engine."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from run_gpt.bench import servers

FOLDER = str(Path(__file__).parents[3] / "scripts")


def test_a_server_is_set_over_the_engine_in_process(
    server: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(servers, "NEW_TOKENS", 8)
    if FOLDER not in sys.path:
        sys.path.insert(0, FOLDER)
    options = ["--server", f"http={server.http_url}", "--server", f"grpc={server.grpc_url}"]
    options += ["--engine", "engine=smollm2:bf16", "--streams", "2", "--rounds", "1"]
    importlib.import_module("server_benchmark").main(options)
    lines = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines() if line.startswith("|")}
    assert float(lines["http / engine, whole"].split("|")[2]) > 0
    assert float(lines["http / grpc, streamed"].split("|")[2]) > 0
    if Path("/proc/self/stat").exists():
        assert "executor 0" in lines["grpc, streamed, x2"]
        assert float(lines["engine, whole, x2"].split("|")[4]) > 0
