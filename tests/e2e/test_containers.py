"""Gateway and executors as a container engine runs them: each a process of its own with the Flow in its
environment, executors with an address each behind one DNS name, which come, go and are replaced under load.

Without these tests a rolling update of a deployment could lose requests. The C library itself resolves the name, from a
file (libnss_wrapper), so that everything but the addresses' machines is real.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from families import write_checkpoint

from run_gpt.config import FLOW_VARIABLE, ServeConfig
from run_gpt.flows import render_flow
from run_gpt.flows.ports import free_ports

WRAPPER = next((str(path) for path in Path("/usr/lib").glob("*/libnss_wrapper.so")), "")
NAME = "executors.example"
WAIT = 90.0
PARAMETERS = {"prompt": "Count: one, two, three,", "max_new_tokens": 40, "do_sample": False, "min_new_tokens": 40}
PAUSE = 0.1
"""Seconds between two requests of a user: the cores start executors meanwhile."""

pytestmark = pytest.mark.skipif(
    not WRAPPER, reason="Debian's libnss-wrapper, which gives a name its addresses, is not installed"
)


class Containers:
    """Processes of one Flow; an executor is named by its address."""

    def __init__(self, folder: Path):
        self.hosts = folder / "hosts"
        self.name([])
        grpc, self.http, self.port = free_ports(3)
        model = str(write_checkpoint("llama", folder / "tiny"))
        ports = {"grpc_port": grpc, "http_port": self.http}
        config = ServeConfig(model_name=model, host="127.0.0.1", **ports, max_running=8, drain_seconds=20.0)
        self.flow = render_flow(config, executor_address=(NAME, self.port))
        self.logs = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def name(self, addresses: list[str]) -> None:
        """Give the DNS name these addresses from now on, in one atomic step."""
        new = self.hosts.with_suffix(".new")
        new.write_text("".join(f"{address} {NAME}\n" for address in addresses))
        new.replace(self.hosts)

    def start(self, role: str, address: str = "0.0.0.0") -> None:
        """Start a process. In a container an executor listens on all addresses; here it listens on `address` only."""
        code = f"from run_gpt.flows import pod; pod.EVERY_INTERFACE = {address!r}; pod.main()"
        env = os.environ | {FLOW_VARIABLE: self.flow, "LD_PRELOAD": WRAPPER, "NSS_WRAPPER_HOSTS": str(self.hosts)}
        name = "gateway" if role == "gateway" else address
        with (self.logs / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-P", "-c", code, role]
            self.processes[name] = subprocess.Popen(command, env=env, stdout=log, stderr=log)

    def end(self, name: str) -> None:
        """End a container as an engine does: SIGTERM, and time to drain."""
        process = self.processes.pop(name)
        process.terminate()
        assert process.wait(WAIT) == 0, (self.logs / f"{name}.log").read_text()[-2000:]

    def ready(self) -> set[str]:
        """Return the addresses of the replicas that take requests, as the gateway reports them."""
        try:
            each = httpx.get(f"http://127.0.0.1:{self.http}/ready", timeout=5).json()["replicas"]["each"]
        except httpx.TransportError:
            return set()
        return {replica["address"].rpartition(":")[0] for replica in each if replica["state"] == "ready"}

    def known(self) -> set[str]:
        """Return the addresses of all replicas that the gateway knows."""
        each = httpx.get(f"http://127.0.0.1:{self.http}/ready", timeout=5).json()["replicas"]["each"]
        return {replica["address"].rpartition(":")[0] for replica in each}

    def close(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGKILL)
            process.wait(10)


@pytest.fixture
def containers(tmp_path: Path) -> Iterator[Containers]:
    made = Containers(tmp_path)
    try:
        yield made
    finally:
        made.close()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.1)


async def ask(client: httpx.AsyncClient, stream: bool) -> str:
    """Send one request. Return its outcome: `whole`, or a description of the fault."""
    if not stream:
        answer = await client.post("/generate", json=PARAMETERS)
        return "whole" if answer.status_code == 200 else answer.text
    finish, error = None, None
    async with client.stream("POST", "/generate_stream", json=PARAMETERS) as response:
        async for line in response.aiter_lines():
            error = line if '"error"' in line else error
            finish = line if '"finish_reason":"length"' in line.replace(" ", "") else finish
    return error or ("whole" if finish else "cut short")


async def load(containers: Containers, stopped: asyncio.Event, outcomes: Counter[str]) -> None:
    """Run four users who send one request after the other until the event, 20,000 at most."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{containers.http}", timeout=WAIT) as client:

        async def user(stream: bool) -> None:
            while not stopped.is_set() and outcomes.total() < 20_000:
                outcomes[await ask(client, stream)] += 1
                await asyncio.sleep(PAUSE)

        await asyncio.gather(*(user(stream) for stream in (True, False, True, False)))


async def test_executors_come_and_go_behind_one_name_and_no_request_is_lost(containers: Containers) -> None:
    containers.start("gateway")
    containers.start("executor", "127.0.0.2")
    containers.start("executor", "127.0.0.3")
    wait_for(lambda: containers.processes["gateway"].poll() is None and _answers(containers), "the gateway answers")
    assert containers.ready() == set(), "nobody is named yet"
    containers.name(["127.0.0.2"])
    wait_for(lambda: containers.ready() == {"127.0.0.2"}, "the first executor is ready")
    containers.name(["127.0.0.2", "127.0.0.3"])
    wait_for(lambda: containers.ready() == {"127.0.0.2", "127.0.0.3"}, "both are ready")

    stopped, outcomes = asyncio.Event(), Counter[str]()
    running = asyncio.create_task(load(containers, stopped, outcomes))
    await asyncio.to_thread(wait_for, lambda: outcomes["whole"] >= 8, "requests are answered")

    # A rolling update: a new one comes, an old one gets SIGTERM, and its address is removed after its end.
    containers.start("executor", "127.0.0.4")
    containers.name(["127.0.0.2", "127.0.0.3", "127.0.0.4"])
    await asyncio.to_thread(wait_for, lambda: "127.0.0.4" in containers.ready(), "the new one is ready")
    await asyncio.to_thread(containers.end, "127.0.0.2")
    containers.name(["127.0.0.3", "127.0.0.4"])
    await asyncio.to_thread(wait_for, lambda: containers.known() == {"127.0.0.3", "127.0.0.4"}, "one removed")

    # A DNS outage removes no replica; a replica whose address is removed finishes its requests.
    containers.name([])
    so_far = outcomes["whole"]
    await asyncio.to_thread(wait_for, lambda: outcomes["whole"] >= so_far + 20, "requests go on without the DNS")
    assert containers.ready() == {"127.0.0.3", "127.0.0.4"}
    containers.name(["127.0.0.4"])
    await asyncio.to_thread(wait_for, lambda: containers.known() == {"127.0.0.4"}, "what is not named is not used")
    await asyncio.to_thread(containers.end, "127.0.0.3")

    stopped.set()
    async with asyncio.timeout(WAIT):
        await running
    assert set(outcomes) == {"whole"}, outcomes
    containers.end("gateway")
    containers.end("127.0.0.4")


def _answers(containers: Containers) -> bool:
    try:
        return bool(httpx.get(f"http://127.0.0.1:{containers.http}/health", timeout=5).status_code == 200)
    except httpx.TransportError:
        return False
