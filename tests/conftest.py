"""Fixtures and hooks of all tests: marks by folder, free ports, the real server, and the check for left processes."""

import importlib.util
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from turns import turn

import run_gpt.process._jina  # noqa: F401  (before any test imports jina)
from run_gpt.engine.runners.native.build import built, unsupported
from run_gpt.models import rendering
from run_gpt.models.cache import cache_root

# The tests' own model and the server's share the cores: their threads must not spin on a core that the other needs.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
os.environ.pop(
    "RUNGPT_API_KEY", None
)  # a developer's key: the tests' servers would require it, and listen on all addresses
READY_SECONDS = 180.0  # includes the default model's download and conversion, the first time
STOP_SECONDS = 60.0
MARKS = ("unit", "integration", "e2e")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its folder's name."""
    for item in items:
        for mark in MARKS:
            if item.path.is_relative_to(Path(__file__).parent / mark):
                item.add_marker(mark)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Run a test that is marked `alone`, with its fixtures, while no other worker runs a test."""
    with turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
FIRST_PORT = 12_000 + 1_000 * (WORKER % 20)
PORTS = cycle(range(FIRST_PORT, FIRST_PORT + 1_000))
"""Ports for this worker alone, of 20, below those that the system gives to clients."""


def free_ports(count: int) -> list[int]:
    """Return different ports of 127.0.0.1 on which nothing listens."""
    return list(islice(filter(_is_free, PORTS), count))


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended do not matter
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@pytest.fixture(name="free_ports", scope="session")
def free_ports_fixture() -> Callable[[int], list[int]]:
    """Return `free_ports`: `free_ports(2)` returns two free ports of 127.0.0.1."""
    return free_ports


@dataclass(frozen=True)
class Server:
    """A running `rungpt serve`, as a user starts it."""

    process: subprocess.Popen[bytes]
    http_port: int
    grpc_port: int
    log: Path
    """File with its stdout and stderr."""
    token: str
    """Value of RUNGPT_TEST_TOKEN in the environment of its processes, which identifies them anywhere."""

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        return f"grpc://127.0.0.1:{self.grpc_port}"

    def processes(self) -> list[psutil.Process]:
        """Return every living process of this server, including the first one."""
        return [process for process in psutil.process_iter() if self._mine(process)]

    def _mine(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return process.environ().get("RUNGPT_TEST_TOKEN") == self.token
        except psutil.Error:
            return False  # gone, or another user's

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until /ready returns 200. Fails, with the log, if the server dies or the time is up."""
        deadline = time.monotonic() + seconds
        while True:
            with_log = f"\n{self.log.read_text(errors='replace')}"
            if (code := self.process.poll()) is not None:
                pytest.fail(f"rungpt serve ended with exit code {code}:{with_log}", pytrace=False)
            try:
                if httpx.get(f"{self.http_url}/ready", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass  # not listening yet
            if time.monotonic() > deadline:
                pytest.fail(f"rungpt serve was not ready after {seconds:.0f} s:{with_log}", pytrace=False)
            time.sleep(0.1)  # between two looks at the condition

    def stop(self) -> None:
        """Send SIGTERM, then check what users rely on: exit code 0, and no process left."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_SECONDS)
        finally:
            _, left = psutil.wait_procs(self.processes(), timeout=5)
            names = [shlex.join(process.cmdline()) for process in left if process.is_running()]
            for process in left:
                process.kill()
        log = self.log.read_text(errors="replace")
        assert code == 0, f"rungpt serve ended with exit code {code}:\n{log}"
        assert not names, f"rungpt serve left processes behind: {names}\n{log}"


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[Server]:
    """Run `rungpt serve ARGUMENTS` on free ports: ready when the block begins, stopped and checked when it ends."""
    http_port, grpc_port = free_ports(2)
    token = uuid.uuid4().hex
    log = folder / f"serve-{token[:8]}.log"
    command = [sys.executable, "-m", "run_gpt.cli", "serve", *arguments]
    command += ["--grpc-port", str(grpc_port), "--http-port", str(http_port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "RUNGPT_TEST_TOKEN": token},
        )
    server = Server(process, http_port, grpc_port, log, token)
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return `start_server`: `with start_server("--replicas", "2") as server:` runs another server; see `serving`."""
    folder = tmp_path_factory.mktemp("servers")
    return lambda *arguments: serving(folder, *arguments)


@pytest.fixture(scope="session")
def server(start_server: Callable[..., Any]) -> Iterator[Server]:
    """Yield the `rungpt serve` that the tests share: the default model in fp32, so that answers can be compared."""
    with start_server("--precision", "fp32") as running:
        yield running


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Give the models of a parallel worker one thread: those of several workers would wait for one another's."""
    if "PYTEST_XDIST_WORKER" in os.environ and (torch := sys.modules.get("torch")):
        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def compiled_kernels() -> None:
    """Compile the kernels before any model loads: meanwhile another runner answers, which rounds differently."""
    if importlib.util.find_spec("torch") and unsupported() is None:
        built(cache_root() / "kernels")


@pytest.fixture(scope="session", autouse=True)
def no_process_left() -> Iterator[None]:
    """Check that a test run leaves no processes on the user's machine."""
    yield
    rendering.end_processes()
    left = []
    for process in psutil.wait_procs(psutil.Process().children(recursive=True), timeout=5)[1]:
        command = shlex.join(process.cmdline())
        if "multiprocessing" not in command:  # Python's own resource tracker lives as long as pytest
            left.append(command)
            process.kill()
    assert not left, f"the tests left processes behind: {left}"
