"""Without these tests `rungpt bench serve` could fail to measure RunGPT's own server."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from run_gpt.cli.app import app

OUTPUT_TOKENS = 6


def bench(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """Run `rungpt bench serve --json` with four requests, two at a time, and return the written JSON."""
    path = tmp_path / "a.json"
    command = ["bench", "serve", "--requests", "4", "--concurrency", "2", "--warmup", "1", "--json", str(path)]
    command += ["--prompt-words", "12", "--output-tokens", str(OUTPUT_TOKENS), *arguments]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    return dict(json.loads(path.read_text()))


@pytest.mark.parametrize("api", ["openai-chat", "openai-completions", "chat", "generate", "grpc chat", "grpc generate"])
def test_every_api_of_a_server_is_measured(server: Any, tmp_path: Path, api: str) -> None:
    endpoint = server.grpc_url if api.startswith("grpc") else server.http_url
    exact = [] if api.startswith("openai") else ["--exact-output"]
    api = api.removeprefix("grpc ")
    document = bench(tmp_path, "--endpoint", endpoint, "--api", api, "--answers", "both", *exact)
    load, whole = document["loads"]
    assert (whole["level"]["streamed"], whole["summary"]["ok"], whole["summary"]["counted_by"]) == (False, 4, "usage")
    assert whole["summary"]["latencies"]["ttft"] is None
    summary = load["summary"]
    assert (summary["ok"], summary["failures"], summary["counted_by"]) == (4, {}, "usage")
    assert summary["prompt_tokens"] >= 12
    assert 0 < summary["latencies"]["ttft"]["p50"] <= summary["latencies"]["e2e"]["p50"]
    for sample in load["samples"]:
        assert 1 <= sample["output_tokens"] <= OUTPUT_TOKENS
        if exact:
            assert sample["output_tokens"] == OUTPUT_TOKENS
        assert 1 <= len(sample["events"]) <= sample["output_tokens"] + 1


def test_chats_with_a_common_beginning_find_it_in_the_cache(server: Any, tmp_path: Path) -> None:
    arguments = ["--endpoint", server.http_url, "--system-words", "100", "--turns", "2"]
    [load] = bench(tmp_path, *arguments)["loads"]
    assert load["summary"]["ok"] == 4
    assert load["summary"]["reused"] > 0.5


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc")
def test_each_process_of_a_server_is_named(server: Any, tmp_path: Path) -> None:
    """Optimising streams requires the processor time of each process."""
    for endpoint in (server.http_url, server.grpc_url):
        [load] = bench(tmp_path, "--endpoint", endpoint)["loads"]
        assert {"gateway", "executor 0", "supervisor"} <= load["summary"]["server_cpu"].keys()
        assert load["summary"]["server_cpu"]["executor 0"] > 0
