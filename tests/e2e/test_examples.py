"""The examples: without these tests a new user could copy one that fails or prints the wrong text."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

# File: kind of its first argument, further arguments, and texts that its output must contain.
RUNS: dict[str, tuple[str, list[str], list[str]]] = {
    "python_generate.py": ("model", [], ["Paris", "total_tokens", "Once upon a time"]),
    "python_chat_stream.py": ("model", [], ["Paris"]),
    "http_requests.py": ("http", [], ["Paris", "completion_tokens", "400 temperature"]),
    "http_sseclient_stream.py": ("http", [], ["Paris"]),
    "grpc_client.py": ("grpc", [], ["Paris", "temperature:"]),
    "openai_client.py": ("http", [], ["Paris", "tokens\n", "modalities: this is not supported here"]),
    "structured_output.py": ("grpc", [], ["FRANCE | Europe | ['French', ", "\nblue\n", "1945"]),
    "tool_calls.py": ("grpc", [], ["get_weather({'city': 'Paris'}) gave", "rain"]),
    "chat_loop.py": ("grpc", ["What is the capital of France?", "And of Italy?"], ["Paris"]),
    "async_many.py": ("grpc", [], ["capital of France? ", "Paris", "Greece", "tokens in"]),
}


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_example(name: str, server: Any, tmp_path: Path) -> None:
    kind, arguments, wanted = RUNS[name]
    first = {"model": "smollm2", "http": server.http_url, "grpc": server.grpc_url}[kind]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), first, *arguments],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    for text in wanted:
        assert text in done.stdout
