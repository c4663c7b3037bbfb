"""Images for Jina Cloud: the files of their Dockerfile exist, and their commands serve when run as its Kubernetes does.

Without these tests, a deployment could be pushed, and its containers would end at once, unseen.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from run_gpt import Client
from run_gpt.config import ServeConfig
from run_gpt.deploy import Deployment
from run_gpt.deploy.jina import JinaCloud

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "jcloud"
KEY = "secret-key-of-the-test"
ROLES = ("gateway", "executor")


@contextmanager
def container(role: str, arguments: list[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process as Jina's Kubernetes runs a container: `jina ROLE ARGUMENTS --uses config.yml` in its folder."""
    command = [sys.executable, str(FOLDER / "jina"), role, "--uses", "config.yml", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=FOLDER / role, env={**os.environ, **env}, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(60)
        finally:
            process.kill()
    assert code == 0, log.read_text(errors="replace")


def wait_ready(url: str, log: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait until /ready answers 200; fail, with the log, when a process ends or the time is up."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and all(process.poll() is None for process in processes):
        try:
            if httpx.get(f"{url}/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)  # between two polls
    pytest.fail(f"not ready:\n{log.read_text(errors='replace')}", pytrace=False)


def test_the_commands_of_the_images_serve_over_http_and_grpc(
    free_ports: Callable[[int], list[int]], tmp_path: Path
) -> None:
    """The commands get the settings of a rendered Flow as options, and the gateway's environment has the key.

    The log format is in the environment, too: then `jina` itself writes JSON.
    """
    server = ServeConfig(api_key=KEY, max_running=4, request_timeout=60, log_format="json")
    deployment = Deployment(server=server, image="me/rungpt:1")
    flow = yaml.safe_load(JinaCloud().render(deployment)["flow.yml"])
    gateway, executor = flow["gateway"], flow["executors"][0]
    grpc_port, http_port, executor_port = free_ports(3)
    address = f"grpc://127.0.0.1:{executor_port}"
    name = executor["name"]
    executor_arguments = ["--name", name, "--host", "127.0.0.1", "--port", str(executor_port), "--native"]
    gateway_arguments = [
        *("--name", "gateway", "--host", "127.0.0.1", "--port", str(grpc_port), str(http_port)),
        *("--protocol", *(protocol.upper() for protocol in gateway["protocol"])),
        *("--graph-description", json.dumps({"start-gateway": [name], name: ["end-gateway"]})),
        *("--deployments-addresses", json.dumps({name: [address]})),
    ]
    for arguments, pod in ((executor_arguments, executor), (gateway_arguments, gateway)):
        arguments += ["--uses-with", json.dumps(pod["uses_with"])]
    # Without $RUNGPT_CACHE the executor uses this machine's cache, which has the model.
    executor_env = {key: value for key, value in executor["env"].items() if key != "RUNGPT_CACHE"}
    url = f"http://127.0.0.1:{http_port}"
    with ExitStack() as stack:
        start = stack.enter_context
        log = tmp_path / "gateway.log"
        processes = [
            start(container("executor", executor_arguments, executor_env, tmp_path / "executor.log")),
            start(container("gateway", gateway_arguments, {**gateway["env"], "RUNGPT_API_KEY": KEY}, log)),
        ]
        wait_ready(url, log, processes)
        pings = [ping(role, port) for role, port in (("gateway", grpc_port), ("executor", executor_port))]
        asked = {"model": "smollm2", "prompt": "The sea", "max_tokens": 4, "temperature": 0}
        assert httpx.post(f"{url}/v1/completions", json=asked).status_code == 401
        answer = httpx.post(f"{url}/v1/completions", json=asked, headers={"authorization": f"Bearer {KEY}"}, timeout=60)
        assert answer.status_code == 200, answer.text
        model = Client(token=KEY).get_model(endpoint=f"grpc://127.0.0.1:{grpc_port}")
        said = model.generate("The sea", max_new_tokens=4, temperature=0).choices[0].text
        assert said == answer.json()["choices"][0]["text"]
        assert [process.wait(60) for process in pings] == [0, 0], "Kubernetes would end these containers"
        assert KEY not in log.read_text(), "`jina` prints its options at its start"
        events = model.generate_stream("Count: one, two,", max_new_tokens=64, min_new_tokens=64)
        next(events)
        processes[0].terminate()
        *_, last = events
        assert last.choices[0].finish_reason == "length", "an executor that gets SIGTERM lets this end"
        assert processes[0].wait(30) == 0
    for role in ROLES:
        lines = [json.loads(line) for line in (tmp_path / f"{role}.log").read_text().splitlines()]
        assert {line["pod"] for line in lines} <= {role}


def ping(role: str, port: int) -> subprocess.Popen[bytes]:
    """Run the probe that Jina's Kubernetes uses."""
    command = [sys.executable, str(FOLDER / "jina"), "ping", role, f"grpc://127.0.0.1:{port}", "--attempts", "1"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_the_executors_file_is_that_of_the_package() -> None:
    assert (FOLDER / "executor/config.yml").read_text() == (ROOT / "executors/causal_lm/config.yml").read_text()


def test_the_dockerfile_is_clean_and_what_it_copies_is_there() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("hadolint")), str(FOLDER / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    text = (FOLDER / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (\S+) ", text, re.MULTILINE)
    assert sorted(copied) == ["executor/config.yml", "gateway/config.yml", "jina"]
    assert all((FOLDER / name).is_file() for name in copied)
    assert os.access(FOLDER / "jina", os.X_OK), "the image keeps the file's mode"
    assert not (FOLDER / "__init__.py").exists(), "it would shadow the library"


def test_entry_points_are_those_that_jina_cloud_knows() -> None:
    stages: dict[str, list[Any]] = {}
    stage = ""
    for line in (FOLDER / "Dockerfile").read_text().splitlines():
        if line.startswith("FROM"):
            stage = line.split()[-1]
        if line.startswith("ENTRYPOINT"):
            stages[stage] = json.loads(line.removeprefix("ENTRYPOINT "))
    assert stages == {role: ["jina", role, "--uses", "config.yml"] for role in ROLES}
