"""Real workers and real gateways, each a process, started as the supervisor starts them."""

import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from waiting import wait_until

EXECUTOR = Path(__file__).with_name("scripted_executor.py")
Ports = Callable[[int], list[int]]


@dataclass
class Stack:
    """A gateway and its workers."""

    flow: dict[str, Any]
    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    """Variables added to the environment of the gateway, and, except for the key, of the workers."""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    ca: Path | None = None
    """Certificate of the gateway, if it has one."""

    @property
    def http(self) -> str:
        return f"http{'' if self.ca is None else 's'}://127.0.0.1:{self.flow['gateway']['port'][1]}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.flow['gateway']['port'][0]}"

    @property
    def journal(self) -> list[list[str]]:
        """Lines that the workers wrote: event, id, worker."""
        path = self.folder / "journal"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def log(self) -> str:
        """Output of all processes."""
        return "".join(map(self.log_of, self.processes))

    def log_of(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def start(self, *role: str) -> None:
        command = [sys.executable, "-m", "run_gpt.flows.pod", *role]
        env = {**os.environ, **self.env}
        if role[0] == "executor":
            env.pop("RUNGPT_API_KEY", None)  # a worker checks no key
        with (self.folder / f"{''.join(role)}.log").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=env)
        assert process.stdin
        flow = json.loads(json.dumps(self.flow))
        if role[0] == "executor":
            flow["executors"][0]["uses"]["with"]["name"] = f"w{role[1]}"
        process.stdin.write((json.dumps(json.dumps(flow)) + "\n").encode())
        process.stdin.flush()
        self.processes["".join(role)] = process

    def kill(self, name: str) -> None:
        self.processes[name].send_signal(signal.SIGKILL)
        self.processes[name].wait()

    def ready(self) -> dict[str, Any]:
        """Return the answer of /ready; {} without an answer."""
        try:
            verify = False if self.ca is None else ssl.create_default_context(cafile=self.ca)
            return httpx.get(f"{self.http}/ready", timeout=5, verify=verify).json()
        except httpx.TransportError:
            return {}

    def wait_ready(self, replicas: int) -> None:
        def enough() -> bool:
            if any(process.poll() is not None for process in self.processes.values()):
                raise AssertionError(self.log)
            return self.ready().get("replicas", {}).get("ready") == replicas

        wait_until(enough, 60)

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdin
            process.stdin.close()


def an_executor(folder: Path, host: str, ports: list[int], state: str) -> dict[str, Any]:
    """Return a Flow's executor with a replica on each port."""
    return {
        "name": "executor",
        "host": host,
        "port": ports,
        "replicas": len(ports),
        "uses": {
            "jtype": "ScriptedExecutor",
            "py_modules": [str(EXECUTOR)],
            "with": {"journal": str(folder / "journal"), "state": state},
        },
    }


def a_gateway(ports: list[int], settings: dict[str, Any]) -> dict[str, Any]:
    """Return a Flow's gateway; its first port is gRPC's."""
    return {
        "uses": {"jtype": "RunGPTGateway", "py_modules": ["run_gpt.gateway.gateway"], "with": settings},
        "host": "127.0.0.1",
        "port": ports,
        "protocol": ["grpc", "http"],
    }


@contextmanager
def a_stack(
    folder: Path,
    ports: list[int],
    workers: int,
    settings: dict[str, Any],
    state: str,
    env: dict[str, str] | None = None,
    host: str = "127.0.0.1",
    ca: Path | None = None,
) -> Iterator[Stack]:
    executor = an_executor(folder, host, ports[2:], state)
    gateway = a_gateway(ports[:2], settings)
    stack = Stack({"jtype": "Flow", "gateway": gateway, "executors": [executor]}, folder, env or {}, ca=ca)
    try:
        stack.start("gateway")
        for i in range(workers):
            stack.start("executor", str(i))
        stack.wait_ready(workers if state == "ready" else 0)
        yield stack
    finally:
        stack.stop()


StartStack = Callable[..., Stack]


@pytest.fixture
def start_stack(tmp_path: Path, free_ports: Ports) -> Iterator[StartStack]:
    """Return `start_stack(replicas=2)`: it starts a stack for one test, ended afterwards. `host` is its workers'."""
    with ExitStack() as stacks:

        def start(
            *,
            replicas: int = 1,
            workers: int | None = None,
            state: str = "ready",
            env: dict[str, str] | None = None,
            host: str = "127.0.0.1",
            **settings: Any,
        ) -> Stack:
            workers = replicas if workers is None else workers
            ports = free_ports(2 + replicas)
            return stacks.enter_context(a_stack(tmp_path, ports, workers, settings, state, env, host))

        yield start


@pytest.fixture
def bare_stack(tmp_path: Path, free_ports: Ports) -> Iterator[Stack]:
    """Yield a stack in which nothing runs yet: up to ten workers on one port; the test sets their hosts."""
    grpc, http, port = free_ports(3)
    executor = an_executor(tmp_path, "", [port] * 10, "ready")
    stack = Stack({"jtype": "Flow", "gateway": a_gateway([grpc, http], {}), "executors": [executor]}, tmp_path)
    try:
        yield stack
    finally:
        stack.stop()


@pytest.fixture(name="a_stack", scope="session")
def a_stack_fixture() -> Any:
    """Return `a_stack`."""
    return a_stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, free_ports: Ports) -> Iterator[Stack]:
    """Yield one gateway over one worker, shared by the tests of a module. The body limit is 100,000 bytes."""
    folder = tmp_path_factory.mktemp("stack")
    with a_stack(folder, free_ports(3), 1, {"max_body_bytes": 100_000}, "ready") as running:
        yield running
