"""`rungpt serve --log-format json 2>log` is read by programs, line by line: one line of another kind stops them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from families import write_checkpoint

from run_gpt.client import Client
from run_gpt.errors import ModelNotFound

PROMPT = {"prompt": "In a village by the sea", "max_new_tokens": 8}


def lines_of(server: Any) -> list[dict[str, Any]]:
    """Return its complete lines so far."""
    return [json.loads(line) for line in server.log.read_text().rpartition("\n")[0].splitlines()]


def events_of(server: Any) -> list[tuple[str, str | None]]:
    """Return the events that the supervisor logged, and the process of each."""
    return [(line["event"], line.get("pod")) for line in lines_of(server) if "event" in line]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)  # between two polls


def ask_in_every_way(server: Any) -> None:
    headers = {"X-Request-Id": "whole"}
    assert httpx.post(f"{server.http_url}/generate", json=PROMPT, headers=headers).status_code == 200
    refused = httpx.post(f"{server.http_url}/generate", json={"prompt": 1}, headers={"X-Request-Id": "refused"})
    assert refused.status_code == 400
    assert httpx.get(f"{server.http_url}/x%0A%7B%22ts%22:1%7D").status_code == 404
    with Client().get_model(endpoint=server.http_url) as model:
        assert list(model.generate_stream(PROMPT["prompt"], max_new_tokens=8, request_id="stream"))
    with Client().get_model(endpoint=server.grpc_url) as model:
        model.generate(PROMPT["prompt"], max_new_tokens=8, request_id="grpc")
        with pytest.raises(ModelNotFound) as raised:
            model.generate(PROMPT["prompt"], adapter="nobody's", request_id="grpc-refused")
        assert raised.value.request_id == "grpc-refused"


def kill_the_worker(server: Any) -> None:
    (worker,) = [p for p in server.processes() if "run_gpt.flows.pod" in p.cmdline() and "executor" in p.cmdline()]
    os.kill(worker.pid, signal.SIGKILL)
    psutil.wait_procs([worker], timeout=20)


def test_every_line_of_a_servers_life_is_json(start_server: Any, tmp_path: Path) -> None:
    """The test covers the start, requests of all kinds and outcomes, a worker that is killed, and the stop."""
    folder = str(write_checkpoint("llama", tmp_path / "tiny"))
    with start_server(folder, "--log-format", "json", "--log-requests") as server:
        ask_in_every_way(server)
        kill_the_worker(server)
        wait_until(lambda: events_of(server).count(("pod_ready", "worker 0")) == 2)
        server.wait_ready()
        assert httpx.post(f"{server.http_url}/generate", json=PROMPT).status_code == 200
    lines = lines_of(server)
    assert all({"ts", "level", "logger", "message"} <= line.keys() for line in lines)
    records = {line["client_id"]: line for line in lines if line.get("client_id")}
    assert {name: (line["method"], line["status"], line.get("error")) for name, line in records.items()} == {
        "whole": ("POST", "200", None),
        "refused": ("POST", "400", "invalid_value"),
        "stream": ("POST", "200", None),
        "grpc": ("gRPC", "OK", None),
        "grpc-refused": ("gRPC", "NOT_FOUND", "model_not_found"),
    }
    assert {line["pod"] for line in records.values()} == {"gateway"}
    assert [server.http_url in line["message"] for line in lines if line.get("event") == "ready"] == [True]
    events = events_of(server)
    start, death = events.index(("ready", None)), events.index(("died", "worker 0"))
    assert ("starting", "worker 0") in events[:start]
    assert start < death
    assert events[death + 1 :] == [
        ("starting", "worker 0"),
        ("pod_ready", "worker 0"),
        ("stopping", None),
        ("stopped", None),
    ]


def test_a_server_that_cannot_start_says_so_in_json(tmp_path: Path, free_ports: Any) -> None:
    """A program that starts servers needs the reason, too."""
    command = [sys.executable, "-m", "run_gpt.cli", "serve", str(tmp_path / "nothing"), "--log-format", "json"]
    ports = free_ports(2)
    command += ["--grpc-port", str(ports[0]), "--http-port", str(ports[1])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1
    assert lines[-1]["message"].startswith("rungpt: ")
    assert done.stdout == ""
