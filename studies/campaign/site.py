"""The server under attack: `rungpt serve` on loopback, its processes, their memory and descriptors, and its state."""

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

READY_SECONDS = 180.0
STOP_SECONDS = 60.0
POLL_SECONDS = 0.05
REPLICAS = 2
SETTINGS = ("--replicas", str(REPLICAS), "--precision", "fp32", "--max-running", "16", "--max-waiting", "16")
PLACES = REPLICAS * (16 + 16)
"""Number of sequences that SETTINGS take at once, running and waiting."""


@dataclass(frozen=True)
class Site:
    """A running server with a key, which attackers use only where an attack says so."""

    process: subprocess.Popen[bytes]
    http_port: int
    grpc_port: int
    key: str = field(repr=False)
    log: Path
    """File with its stdout and stderr."""
    ease: float = 1.0
    """Factor on all bounds of time; tests, which run on busy machines, give more."""

    @property
    def url(self) -> str:
        """Return the HTTP port's URL."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        """Return the gRPC port's address."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def authorization(self) -> dict[str, str]:
        """Return the header of a good request."""
        return {"authorization": f"Bearer {self.key}"}

    def client(self, seconds: float = 60.0) -> httpx.AsyncClient:
        """Return a client with the key; `seconds` bounds each of its requests."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        return httpx.AsyncClient(base_url=self.url, headers=self.authorization, timeout=seconds, limits=limits)

    def processes(self, role: str) -> list[psutil.Process]:
        """Return the living processes of a role: `gateway` or `executor`."""
        return [process for process in psutil.Process(self.process.pid).children() if _has_role(process, role)]

    def memory(self, role: str) -> int:
        """Return the resident bytes of a role's processes."""
        return sum(process.memory_info().rss for process in self.processes(role))

    def descriptors(self, role: str) -> int:
        """Return the number of open files of a role's processes."""
        return sum(process.num_fds() for process in self.processes(role))

    async def status(self) -> dict[str, Any]:
        """Return the answer of /ready; {} if there is none within five seconds."""
        try:
            async with self.client(5.0) as client:
                found: dict[str, Any] = (await client.get("/ready")).json()
                return found
        except (httpx.HTTPError, ValueError):
            return {}

    async def replicas_ready(self) -> int:
        """Return the number of replicas that take requests."""
        return int((await self.status()).get("replicas", {}).get("ready", 0))

    async def is_idle(self) -> bool:
        """Return True when neither the gateway nor an engine has a request."""
        status = await self.status()
        each = status.get("replicas", {}).get("each", [])
        return status.get("in_flight") == 0 and not any(one["running"] or one["waiting"] for one in each)


def _has_role(process: psutil.Process, role: str) -> bool:
    try:
        return role in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False  # it has just ended


@contextmanager
def serving(model: str, folder: Path, ease: float = 1.0) -> Iterator[Site]:
    """Run `rungpt serve MODEL` on free ports: ready when the block begins, ended when it ends.

    Raises RuntimeError, with its log, if it does not become ready.
    """
    site = _started(model, folder, ease)
    try:
        _wait_ready(site)
        yield site
    finally:
        _stop(site.process)


def _started(model: str, folder: Path, ease: float) -> Site:
    http_port, grpc_port = _free_ports()
    key, log = secrets.token_urlsafe(24), folder / "serve.log"
    command = [sys.executable, "-m", "run_gpt.cli", "serve", model, *SETTINGS, "--host", "127.0.0.1"]
    command += ["--http-port", str(http_port), "--grpc-port", str(grpc_port)]
    env = {**os.environ, "RUNGPT_API_KEY": key}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env)
    return Site(process, http_port, grpc_port, key, log, ease)


def _wait_ready(site: Site) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while asyncio.run(site.replicas_ready()) < REPLICAS:
        if site.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"rungpt serve did not become ready:\n{site.log.read_text(errors='replace')}")
        time.sleep(POLL_SECONDS)


def _stop(process: subprocess.Popen[bytes]) -> None:
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in psutil.wait_procs(children, timeout=5)[1]:
        child.kill()


def _free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        return one.getsockname()[1], two.getsockname()[1]
