"""Without this `rungpt bench serve` would not measure the server that it comes with."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

OUTPUT_TOKENS = 6


def bench(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """What `rungpt bench serve --json` wrote of four requests, two at a time."""
    path = tmp_path / "a.json"
    command = [sys.executable, "-m", "run_gpt.cli", "bench", "serve", "--requests", "4", "--concurrency", "2"]
    command += ["--prompt-words", "12", "--output-tokens", str(OUTPUT_TOKENS), "--warmup", "1", "--json", str(path)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(path.read_text()))


@pytest.mark.parametrize("api", ["openai-chat", "openai-completions", "chat", "generate", "grpc chat", "grpc generate"])
def test_every_api_of_a_server_is_measured(server: Any, tmp_path: Path, api: str) -> None:
    endpoint = server.grpc_url if api.startswith("grpc") else server.http_url
    exact = [] if api.startswith("openai") else ["--exact-output"]
    api = api.removeprefix("grpc ")
    document = bench(tmp_path, "--endpoint", endpoint, "--api", api, *exact)
    [load] = document["loads"]
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
