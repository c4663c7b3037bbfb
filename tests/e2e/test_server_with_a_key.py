"""`rungpt serve` with a key, from outside: clients without the key get nothing, and the key stays secret."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest

from run_gpt.client import Client
from run_gpt.errors import AuthenticationError

KEY = "the-key-of-the-whole-test"
BODY = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_new_tokens": 12}


@pytest.fixture(scope="module")
def keyed(start_server: Callable[..., Any]) -> Iterator[Any]:
    with start_server("--precision", "fp32", "--host", "127.0.0.1", "--api-key", KEY, "--log-requests") as server:
        yield server


def test_http_and_grpc_answer_requests_with_the_key(keyed: Any) -> None:
    assert httpx.post(f"{keyed.http_url}/chat", json=BODY, timeout=60).status_code == 401
    answer = httpx.post(f"{keyed.http_url}/chat", json=BODY, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]
    for endpoint in (keyed.http_url, keyed.grpc_url):
        with Client(KEY).get_model(endpoint=endpoint) as model:
            assert "Paris" in "".join(str(chunk) for chunk in model.chat_stream(BODY["messages"], max_new_tokens=12))
        with Client().get_model(endpoint=endpoint) as model, pytest.raises(AuthenticationError):
            model.chat("hi")


def test_the_command_line_takes_the_key_from_its_environment(keyed: Any) -> None:
    command = [sys.executable, "-m", "run_gpt.cli", "chat", "What is the capital of France?", "--max-new-tokens", "12"]
    command += ["--endpoint", keyed.grpc_url]
    for env, code, says in (({"RUNGPT_API_KEY": KEY}, 0, "Paris"), ({}, 1, "needs a key")):
        done = subprocess.run(
            command, env={**os.environ, **env}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == code
        assert says in done.stdout + done.stderr


def test_only_the_command_that_was_typed_shows_the_key(keyed: Any) -> None:
    """Other users of the machine do not see the key in `ps`, nor do readers of the log, nor code of the model."""
    children = [process for process in keyed.processes() if process.pid != keyed.process.pid]
    assert len(children) >= 2
    assert not [process for process in children if KEY in " ".join(process.cmdline())]
    workers = [process for process in children if "executor" in process.cmdline()]
    assert workers
    assert not [process for process in workers if KEY in " ".join(psutil.Process(process.pid).environ().values())]
    log = keyed.log.read_text()
    assert KEY not in log
    assert "RunGPT listens on 127.0.0.1 only: requests need a key" in log
    assert "POST /chat 200" in log
    assert "key=default" in log
