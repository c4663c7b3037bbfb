"""`jina flow --uses FILE` with our gateway in it: for users who run Jina themselves, without our supervisor."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import yaml
from waiting import wait_until

# The code of the `jina` command, after the import that repairs Jina on Python 3.12.
RUN = (
    "import sys, run_gpt.process._jina; from jina_cli import main; "
    "sys.argv = ['jina', 'flow', '--uses', sys.argv[1]]; main()"
)
REPLICAS = 2
EXECUTOR = Path(__file__).with_name("scripted_executor.py")


def test_a_flow_of_jinas_own_pods_serves(tmp_path: Path, free_ports: Callable[[int], list[int]]) -> None:
    ports = free_ports(2)
    flow = {
        "jtype": "Flow",
        "gateway": {
            "uses": {"jtype": "RunGPTGateway", "py_modules": ["run_gpt.gateway.gateway"], "with": {"drain_seconds": 2}},
            "host": "127.0.0.1",
            "port": ports,
            "protocol": ["grpc", "http"],
        },
        "executors": [
            {
                "name": "executor",
                "host": "127.0.0.1",
                "replicas": REPLICAS,
                "uses": {
                    "jtype": "ScriptedExecutor",
                    "py_modules": [str(EXECUTOR)],
                    "with": {"journal": str(tmp_path / "journal"), "name": "w"},
                },
            }
        ],
    }
    (tmp_path / "flow.yml").write_text(yaml.safe_dump(flow, sort_keys=False))
    log = (tmp_path / "log").open("wb")
    command = [sys.executable, "-c", RUN, str(tmp_path / "flow.yml")]
    process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "JINA_LOG_LEVEL": "WARNING"})
    url = f"http://127.0.0.1:{ports[1]}"

    def ready() -> bool:
        assert process.poll() is None, (tmp_path / "log").read_text()
        try:
            return httpx.get(f"{url}/ready").json()["replicas"]["ready"] == REPLICAS
        except httpx.TransportError:
            return False

    family = []
    try:
        wait_until(ready, 60)
        family = psutil.Process(process.pid).children(recursive=True)
        body = {"prompt": json.dumps({"words": ["a", "b"]})}
        assert httpx.post(f"{url}/generate", json=body).json()["choices"][0]["text"] == "ab"
        assert '"finish_reason":"stop"' in httpx.post(f"{url}/generate_stream", json=body).text
        wait_until(lambda: "ready to serve" in (tmp_path / "log").read_text())  # Jina may hang if it is ended before
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (0, -signal.SIGINT)  # Jina sets its handler after it has said that it is ready
    finally:
        for left in psutil.wait_procs(family, timeout=5)[1]:
            left.kill()
        if process.poll() is None:
            process.kill()
            process.wait()
