"""200 requests of all kinds through both doors, a quarter of whose clients go away, leave nothing behind.

Without this a server that runs for weeks would slow down, refuse requests, or die of memory, and nobody could say why.
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
"""Of four requests each: both doors, streamed and whole."""
GOING, FAILING = 12, 4
"""Units whose clients go away before the answer is complete, and units that must end with an error."""
AT_ONCE = 24
MAX_RUNNING = 16
MAX_CONTEXT = 640
SETTLE_SECONDS = 20.0
IDLE_SECONDS = 5.0
"""Until all have gone whose clients have: a step, and the gateway's look at the worker's status each half second."""

FEW = 8
"""File descriptors, threads and tasks that may come and go in gRPC's and Python's pools; a leak is one a request."""
FEW_BYTES = 16 * 2**20
"""Memory that may be in use more after the second round. A token's cache takes 23 kB: a round whose rows' caches were
kept, or 80 kB of anything else a request, would leave more."""
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""oneDNN keeps a kernel for each number of tokens that it has seen in a step, up to 1,024 of them and hundreds of MB.
That is no leak, and would hide one: it is told to keep few."""

# MAX_RUNNING of these that nobody cancels keep a server that makes 1,000 tokens a second busy for twice IDLE_SECONDS.
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

# Python runs a file of this name at its start. Asked by a signal, each process of the server gives memory that it does
# not use back to the system, and counts its asyncio tasks.
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
    """One request, and how it must end: `answer`, `gone`, or an error's class."""

    door: str
    stream: bool
    end: str
    call: dict[str, Any]


def planned() -> list[Planned]:
    """The requests of a round, the same ones each time."""
    ends = ["gone"] * GOING + list(islice(cycle(FAULTS), FAILING)) + ["answer"] * (UNITS - GOING - FAILING)
    times, parameters = cycle(TIMES), cycle(PARAMETERS)
    requests = []
    for unit, end in enumerate(ends):
        for door, stream in product(("grpc", "http"), (False, True)):
            call = {"prompt": f"{unit} {door} {stream:d}" + " once upon a time" * next(times)}
            call |= ENDLESS if end == "gone" else FAULTS[end] if end in FAULTS else next(parameters)
            requests.append(Planned(door, stream, end, call))
    random.Random(0).shuffle(requests)
    return requests


async def ending(model: Any, request: Planned) -> str:
    """Makes a request; says how it ended. An answer is whole: each of its choices has ended, once."""
    try:
        if request.stream:
            return await read(model, request)
        async with asyncio.timeout(STAY_SECONDS if request.end == "gone" else None):
            answer = await model.agenerate(**request.call)
        check_choices(request, [choice for choice in answer.choices if choice.finish_reason])
    except RequestError as error:
        return type(error).__name__
    except TimeoutError:
        return "gone"
    return "answer"


async def read(model: Any, request: Planned) -> str:
    """`ending` of a stream."""
    ended: list[Any] = []
    async with aclosing(model.agenerate_stream(**request.call)) as events:
        async for event in events:
            assert not {choice.index for choice in event.choices} & {choice.index for choice in ended}
            ended += [choice for choice in event.choices if choice.finish_reason]
            if request.end == "gone":
                return "gone"
    check_choices(request, ended)
    return "answer"


def check_choices(request: Planned, ended: list[Any]) -> None:
    assert sorted(choice.index for choice in ended) == list(range(request.call.get("n", 1)))


async def run_round(server: Any) -> None:
    """All requests, AT_ONCE at a time, from clients that close when they are done; each must end as planned."""
    places = asyncio.Semaphore(AT_ONCE)
    requests = planned()
    async with AsyncExitStack() as stack:
        models = {}
        for door, url in (("grpc", server.grpc_url), ("http", server.http_url)):
            models[door] = await stack.enter_async_context(Client().get_model(endpoint=url))

        async def run(request: Planned) -> str:
            async with places:
                return await ending(models[request.door], request)

        async with asyncio.timeout(120):
            ends = await asyncio.gather(*(run(request) for request in requests))
    assert ends == [request.end for request in requests]


async def until(
    look: Callable[[], Awaitable[Any]], is_right: Callable[[Any], bool], seconds: float = SETTLE_SECONDS
) -> None:
    """Until what is seen is right. Fails when the time is up, with what was seen last."""
    deadline = time.monotonic() + seconds
    while not is_right(seen := await look()):
        assert time.monotonic() < deadline, f"after {seconds:.0f} s still {seen}"
        await asyncio.sleep(0.05)


async def busy(server: Any) -> tuple[int, int, int]:
    """Requests in the gateway; sequences that the engine runs, and that wait."""
    async with httpx.AsyncClient(base_url=server.http_url, timeout=SETTLE_SECONDS) as client:
        status = (await client.get("/ready")).json()
    replica = status["replicas"]["each"][0]
    return status["in_flight"], replica["running"], replica["waiting"]


async def until_idle(server: Any) -> None:
    await until(lambda: busy(server), lambda seen: seen == (0, 0, 0), IDLE_SECONDS)


async def holdings(server: Any, folder: Path) -> dict[str, dict[str, int]]:
    """What gateway and worker hold: file descriptors, threads, asyncio tasks, bytes of memory."""
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
    """The asyncio tasks that live in a process; see SITECUSTOMIZE."""
    answer = folder / str(process.pid)
    answer.unlink(missing_ok=True)
    process.send_signal(signal.SIGUSR2)
    async with asyncio.timeout(SETTLE_SECONDS):
        while not answer.exists():
            await asyncio.sleep(0.02)
    return int(answer.read_text())


def no_more_than(had: dict[str, dict[str, int]], has: dict[str, dict[str, int]]) -> bool:
    """Whether no process has more of anything than it had, but for a few."""
    few = {"files": FEW, "threads": FEW, "tasks": FEW, "bytes": FEW_BYTES}
    return all(has[role][kind] <= had[role][kind] + few[kind] for role in had for kind in few)


async def all_slots_at_once(server: Any) -> None:
    """Every slot can be had by one request, whose client then goes."""
    async with (
        Client().get_model(endpoint=server.http_url) as model,
        aclosing(model.agenerate_stream("Once", **ENDLESS, n=MAX_RUNNING, temperature=1.0)) as events,
    ):
        await anext(events)
        await until(lambda: busy(server), lambda seen: seen[1:] == (MAX_RUNNING, 0))
    await until_idle(server)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR2"), reason="this system has no such signal to ask a process with")
async def test_two_rounds_of_200_requests_leave_nothing_behind(start_server, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH")))))
    for name in KERNEL_CACHES:
        monkeypatch.setenv(name, "8")
    with start_server("--max-running", str(MAX_RUNNING), "--max-context", str(MAX_CONTEXT)) as server:
        # Memory of slots is taken when it is written first: write all of it.
        async with Client().get_model(endpoint=server.grpc_url) as model:
            await model.agenerate("word " * (MAX_CONTEXT - 10), n=MAX_RUNNING, max_new_tokens=4, temperature=1.0)
        await run_round(server)
        await until_idle(server)
        had = await holdings(server, tmp_path)
        await run_round(server)
        await until_idle(server)
        await until(lambda: holdings(server, tmp_path), lambda has: no_more_than(had, has))
        await all_slots_at_once(server)
