"""200 requests of all kinds through both ports leave nothing behind, although a quarter of the clients disconnect.

Without these tests a server that runs for weeks could slow down, refuse requests, or run out of memory without a cause.
"""

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from run_gpt import Client
from run_gpt.errors import RequestError

UNITS = 50
"""Number of units of four requests each: both ports, streamed and whole."""
GOING, FAILING = 12, 4
"""Number of units whose clients disconnect before the end, and of units that must end with an error."""
AT_ONCE = 24
MAX_RUNNING = 16
MAX_CONTEXT = 640
SETTLE_SECONDS = 20.0
IDLE_SECONDS = 5.0
"""Time until all requests without a client have ended: an engine step, and the gateway's probe each half second."""

FEW = 8
"""Number of file descriptors, threads and tasks that pools of gRPC and Python may add; a leak adds one a request."""
FEW_BYTES = 16 * 2**20
"""Bytes that may be in use in addition after the second round. A token's KV cache takes 23 kB: a round whose sequences'
caches were kept, or 80 kB of anything else a request, would leave more."""
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Variables that limit oneDNN's kernel cache, which keeps a kernel for each number of tokens seen in a step, up to
1,024 of them and hundreds of MB. That is no leak, but would hide one: the tests set low limits."""

# MAX_RUNNING of these, if not cancelled, keep a server that makes 1,000 tokens a second busy for twice IDLE_SECONDS.
ENDLESS = {"min_new_tokens": 600, "max_new_tokens": 600}
STAY_SECONDS = 0.4
PARAMETERS: list[dict[str, Any]] = [
    {"max_new_tokens": 4},
    {"max_new_tokens": 8, "temperature": 0.9, "top_p": 0.9, "seed": 1},
    {"max_new_tokens": 5, "temperature": 1.2, "top_k": 20, "n": 3},
    {"max_new_tokens": 10, "repetition_penalty": 1.2, "stop": [",", " the"]},
    {"max_new_tokens": 6, "presence_penalty": 0.5, "frequency_penalty": 0.5, "logprobs": 2},
    {"max_new_tokens": 8, "min_p": 0.1, "do_sample": True, "n": 2},
    {"max_new_tokens": 1},
    {"max_new_tokens": 6, "min_new_tokens": 3, "no_repeat_ngram_size": 2},
]
TIMES = (1, 1, 3, 1, 8, 1, 30)
FAULTS: dict[str, dict[str, Any]] = {
    "ModelNotFound": {"model": "another"},
    "InvalidRequest": {"logit_bias": {"999999": 1.0}},
    "ContextLengthExceeded": {"prompt": "word " * 2 * MAX_CONTEXT},
    "DeadlineExceeded": {**ENDLESS, "timeout": STAY_SECONDS},
}

# Python runs a file of this name at its start. On a signal, each process of the server returns unused memory to the
# system, and counts its asyncio tasks.
SITECUSTOMIZE = """
import asyncio, ctypes, gc, os, signal

def count(*_):
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    tasks = sum(type(thing) is asyncio.Task and not thing.done() for thing in gc.get_objects())
    path = os.path.join(os.path.dirname(__file__), str(os.getpid()))
    with open(path + ".part", "w") as file:
        file.write(str(tasks))
    os.replace(path + ".part", path)

signal.signal(signal.SIGUSR2, count)
"""


@dataclass(frozen=True)
class Planned:
    """One request, and its required outcome: `answer`, `disconnected`, or an error's class."""

    protocol: str
    stream: bool
    end: str
    call: dict[str, Any]


def planned() -> list[Planned]:
    """Return the requests of a round, the same ones each time."""
    ends = ["disconnected"] * GOING + list(islice(cycle(FAULTS), FAILING)) + ["answer"] * (UNITS - GOING - FAILING)
    times, parameters = cycle(TIMES), cycle(PARAMETERS)
    requests = []
    for unit, end in enumerate(ends):
        for protocol, stream in product(("grpc", "http"), (False, True)):
            call = {"prompt": f"{unit} {protocol} {stream:d}" + " once upon a time" * next(times)}
            call |= ENDLESS if end == "disconnected" else FAULTS[end] if end in FAULTS else next(parameters)
            requests.append(Planned(protocol, stream, end, call))
    random.Random(0).shuffle(requests)
    return requests


async def ending(model: Any, request: Planned) -> str:
    """Make a request. Return its outcome. An answer is whole: each of its choices has ended, once."""
    try:
        if request.stream:
            return await read(model, request)
        async with asyncio.timeout(STAY_SECONDS if request.end == "disconnected" else None):
            answer = await model.agenerate(**request.call)
        check_choices(request, [choice for choice in answer.choices if choice.finish_reason])
    except RequestError as error:
        return type(error).__name__
    except TimeoutError:
        return "disconnected"
    return "answer"


async def read(model: Any, request: Planned) -> str:
    """Return the outcome of a stream, as `ending` does."""
    ended: list[Any] = []
    async with aclosing(model.agenerate_stream(**request.call)) as events:
        async for event in events:
            assert not {choice.index for choice in event.choices} & {choice.index for choice in ended}
            ended += [choice for choice in event.choices if choice.finish_reason]
            if request.end == "disconnected":
                return "disconnected"
    check_choices(request, ended)
    return "answer"


def check_choices(request: Planned, ended: list[Any]) -> None:
    assert sorted(choice.index for choice in ended) == list(range(request.call.get("n", 1)))


async def run_round(server: Any) -> None:
    """Run all requests, AT_ONCE at a time, from clients that close at their end; each must end as planned."""
    places = asyncio.Semaphore(AT_ONCE)
    requests = planned()
    async with AsyncExitStack() as stack:
        models = {}
        for protocol, url in (("grpc", server.grpc_url), ("http", server.http_url)):
            models[protocol] = await stack.enter_async_context(Client().get_model(endpoint=url))

        async def run(request: Planned) -> str:
            async with places:
                return await ending(models[request.protocol], request)

        async with asyncio.timeout(120):
            ends = await asyncio.gather(*(run(request) for request in requests))
    assert ends == [request.end for request in requests]


async def until(
    poll: Callable[[], Awaitable[Any]], is_right: Callable[[Any], bool], seconds: float = SETTLE_SECONDS
) -> None:
    """Wait until the observed value is right. Fails after the time limit, with the last value."""
    deadline = time.monotonic() + seconds
    while not is_right(seen := await poll()):
        assert time.monotonic() < deadline, f"after {seconds:.0f} s still {seen}"
        await asyncio.sleep(0.05)


async def busy(server: Any) -> tuple[int, int, int]:
    """Return the number of requests in the gateway, of running sequences in the engine, and of waiting ones."""
    async with httpx.AsyncClient(base_url=server.http_url, timeout=SETTLE_SECONDS) as client:
        status = (await client.get("/ready")).json()
    replica = status["replicas"]["each"][0]
    return status["in_flight"], replica["running"], replica["waiting"]


async def until_idle(server: Any) -> None:
    await until(lambda: busy(server), lambda seen: seen == (0, 0, 0), IDLE_SECONDS)


async def holdings(server: Any, folder: Path) -> dict[str, dict[str, int]]:
    """Return the holdings of gateway and worker: file descriptors, threads, asyncio tasks, bytes of memory."""
    found = {}
    for process in server.processes():
        role = next((role for role in ("gateway", "executor") if role in process.cmdline()), None)
        if role is not None:
            found[role] = {
                "files": process.num_fds(),
                "threads": process.num_threads(),
                "tasks": await tasks(process, folder),
                "bytes": process.memory_info().rss,
            }
    assert set(found) == {"gateway", "executor"}
    return found


async def tasks(process: psutil.Process, folder: Path) -> int:
    """Return the number of live asyncio tasks in a process; see SITECUSTOMIZE."""
    answer = folder / str(process.pid)
    answer.unlink(missing_ok=True)
    process.send_signal(signal.SIGUSR2)
    async with asyncio.timeout(SETTLE_SECONDS):
        while not answer.exists():
            await asyncio.sleep(0.02)
    return int(answer.read_text())


def no_more_than(had: dict[str, dict[str, int]], has: dict[str, dict[str, int]]) -> bool:
    """Return True when no process holds more than before, except for the allowed few."""
    few = {"files": FEW, "threads": FEW, "tasks": FEW, "bytes": FEW_BYTES}
    return all(has[role][kind] <= had[role][kind] + few[kind] for role in had for kind in few)


async def all_slots_at_once(server: Any) -> None:
    """Check that one request can take every slot; its client then disconnects."""
    async with (
        Client().get_model(endpoint=server.http_url) as model,
        aclosing(model.agenerate_stream("Once", **ENDLESS, n=MAX_RUNNING, temperature=1.0)) as events,
    ):
        await anext(events)
        await until(lambda: busy(server), lambda seen: seen[1:] == (MAX_RUNNING, 0))
    await until_idle(server)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="this system has no such signal to ask a process with")
@pytest.mark.alone
async def test_two_rounds_of_200_requests_leave_nothing_behind(start_server, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH")))))
    for name in KERNEL_CACHES:
        monkeypatch.setenv(name, "8")
    with start_server("--max-running", str(MAX_RUNNING), "--max-context", str(MAX_CONTEXT)) as server:
        # Slots take memory at the first write: write all of it.
        async with Client().get_model(endpoint=server.grpc_url) as model:
            await model.agenerate("word " * (MAX_CONTEXT - 10), n=MAX_RUNNING, max_new_tokens=4, temperature=1.0)
        await run_round(server)
        await until_idle(server)
        had = await holdings(server, tmp_path)
        await run_round(server)
        await until_idle(server)
        await until(lambda: holdings(server, tmp_path), lambda has: no_more_than(had, has))
        await all_slots_at_once(server)
