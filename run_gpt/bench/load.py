"""One load on a server: a fixed number of requests in flight (closed loop), or arrivals at a rate (open loop)."""

import asyncio
import resource
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from run_gpt.bench.processes import ServerProcesses
from run_gpt.bench.sample import Sample
from run_gpt.bench.sender import Sender, record
from run_gpt.bench.workload import Prompts

LAG_SECONDS = 0.05


@dataclass(frozen=True)
class Level:
    """A load: `closed` keeps `value` requests in flight, `open` sends `value` requests a second, at random times."""

    kind: str
    value: float
    streamed: bool = True
    """False if each answer is requested as a whole, in one piece."""

    def __str__(self) -> str:
        load = f"concurrency {self.value:g}" if self.kind == "closed" else f"rate {self.value:g}/s"
        return load if self.streamed else f"{load}, whole"


@dataclass(frozen=True)
class Bounds:
    """Bounds of a load: most requests, and seconds after which none is sent. Requests in flight may finish."""

    requests: int = 200
    seconds: float = 60.0
    timeout: float = 120.0
    """Seconds after which a request is abandoned."""


@dataclass
class Run:
    """Record of one load."""

    level: Level
    samples: list[Sample] = field(default_factory=list)
    in_flight: int = 0
    lag: list[float] = field(default_factory=list)
    """Delays of the client's own event loop in seconds, measured every LAG_SECONDS."""
    cpu_seconds: float = 0.0
    """Processor seconds of the client itself."""
    server_seconds: dict[str, float] = field(default_factory=dict)
    """Processor seconds of each server process, by its name; empty if they are not visible."""
    seconds: float = 0.0
    """Duration from the first request to the end of the last answer."""


OnProgress = Callable[[Run], None]
Ask = Callable[[float | None], Coroutine[Any, Any, None]]
"""Function that sends one request, due at the given time (None: now), and waits for its end."""


def arrivals(rate: float, count: int, seed: int) -> np.ndarray:
    """Return the arrival times of `count` requests of a Poisson process (seconds): exponential gaps of mean 1/rate."""
    return np.cumsum(np.random.default_rng([seed, 4]).exponential(1 / rate, count))


async def run_level(
    level: Level,
    sender: Sender,
    workload: Prompts,
    bounds: Bounds,
    seed: int = 0,
    on_progress: OnProgress = lambda run: None,
    server: ServerProcesses | None = None,
) -> Run:
    """Apply the load to the server until its bounds are reached, and wait for the answers."""
    run, origin = Run(level), 0.0

    async def ask(due: float | None) -> None:
        prompt = workload.next()
        sample = Sample(start=time.perf_counter() - origin if due is None else due, max_tokens=prompt.max_tokens)
        run.in_flight += 1
        on_progress(run)
        try:
            answer = await record(sender, prompt, level.streamed, sample, origin, bounds.timeout)
        finally:
            run.in_flight -= 1
        run.samples.append(sample)
        if sample.ok:
            workload.answered(prompt, answer)
        on_progress(run)

    with _effort(run, server):
        origin = time.perf_counter()
        if level.kind == "closed":
            await _closed(int(level.value), bounds, origin, ask)
        else:
            await _open(arrivals(level.value, bounds.requests, seed), bounds, origin, ask)
    run.samples.sort(key=lambda sample: sample.start)
    run.seconds = max((s.end for s in run.samples), default=0.0) - min((s.start for s in run.samples), default=0.0)
    return run


async def _closed(concurrency: int, bounds: Bounds, origin: float, ask: Ask) -> None:
    left = iter(range(bounds.requests))

    async def user() -> None:
        while time.perf_counter() - origin < bounds.seconds and next(left, None) is not None:
            await ask(None)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, bounds.requests)):
            group.create_task(user())


async def _open(due: np.ndarray, bounds: Bounds, origin: float, ask: Ask) -> None:
    async with asyncio.TaskGroup() as group:
        for at in due[due < bounds.seconds].tolist():
            await asyncio.sleep(at - (time.perf_counter() - origin))
            group.create_task(ask(at))


@contextmanager
def _effort(run: Run, server: ServerProcesses | None) -> Iterator[None]:
    """Record in `run` the processor time of client and server during the block, and the client's delays."""
    before = server.seconds() if server else {}
    cpu = _cpu_seconds()
    watch = asyncio.create_task(_watch_lag(run.lag))
    try:
        yield
    finally:
        watch.cancel()
    run.cpu_seconds = _cpu_seconds() - cpu
    run.server_seconds = server.since(before) if server else {}


async def _watch_lag(lag: list[float]) -> None:
    """Record the delay of a task that is to run every LAG_SECONDS: measured times may be late by as much."""
    while True:
        due = time.perf_counter() + LAG_SECONDS
        await asyncio.sleep(LAG_SECONDS)
        lag.append(time.perf_counter() - due)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
