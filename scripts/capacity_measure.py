"""Measures what scripts/capacity.py simulates with: steps of the real engine, and what the doors and probes cost."""

import asyncio
import os
import random
import resource
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
from benchmark_process import busy_seconds
from capacity_steps import Step, pairs

RANDOM_IDS = range(1000, 40000)
WARM_UP_TOKENS = 16


def progress(text: str) -> None:
    """One line for the person who waits."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Batch:
    """Streams that the engine runs together: a prompt's tokens and new tokens for each."""

    name: str
    streams: tuple[tuple[int, int], ...]


def batches(most_rows: int) -> Iterator[Batch]:
    """Steps of every kind that a server sees: few and many rows, short and long contexts, prompts beside rows."""
    for rows in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64):
        if rows <= most_rows:
            yield Batch(f"{rows} short streams", ((16, 32 if rows < 16 else 12),) * rows)
    yield Batch("1 stream in a long context", ((1800, 32),))
    yield Batch("4 streams in long contexts", ((1200, 24),) * 4)
    yield Batch("prompts of several lengths", tuple((tokens, 2) for tokens in (40, 90, 180, 300, 450, 512)))
    yield Batch("prompts beside streams", (*(((16, 64),) * 6), *((tokens, 24) for tokens in (250, 500, 900, 140, 60))))


class Recorder:
    """Notes each step of an engine: what its plan held, and the time until the next plan, or its commit if none.

    `clock` is read in the engine's thread.
    """

    def __init__(self, scheduler: Any, clock: Callable[[], float]):
        self.steps: list[Step] = []
        self._clock = clock
        self._plan, self._commit = scheduler.plan, scheduler.commit
        self._scheduler = scheduler
        self._open: tuple[float, Step] | None = None
        scheduler.plan, scheduler.commit = self.plan, self.commit

    def plan(self) -> Any:
        """In place of the scheduler's: the step before it, if it is not noted yet, ended now."""
        start = self._clock()
        self._close(start)
        plan = self._plan()
        self._open = (start, _content(plan)) if plan.runs else None
        return plan

    def commit(self, *arguments: Any) -> Any:
        """In place of the scheduler's: when nothing is left to do, the next plan says nothing of this step."""
        outcomes = self._commit(*arguments)
        if not self._scheduler.has_work:
            self._close(self._clock())
        return outcomes

    def _close(self, end: float) -> None:
        if self._open is not None:
            start, step = self._open
            self.steps.append(
                Step(step.rows, step.row_context, step.prompt_tokens, step.prompt_pairs, seconds=end - start)
            )
        self._open = None


def _content(plan: Any) -> Step:
    rows = context = tokens = prompt_pairs = 0
    for run in plan.runs:
        if run.row.answered:
            rows, context = rows + 1, context + run.start
        else:
            tokens += len(run.token_ids)
            prompt_pairs += pairs(run.start, len(run.token_ids))
    return Step(rows, context, tokens, prompt_pairs)


def measure_steps(model_name: str, threads: int, seconds: float) -> list[Step]:
    """Steps of the engine that `rungpt serve` would have, without speculation, for about `seconds`.

    With one thread their time is that thread's processor time, which other programs change little; with more it is
    that of the wall.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported
    import torch

    from run_gpt.config import EngineConfig, ModelConfig
    from run_gpt.model import load_model

    torch.set_num_threads(threads)
    progress(f"loading {model_name} with {threads} threads")
    config = EngineConfig(speculate=False, reuse_prefixes=False)
    model = load_model(ModelConfig(model_name=model_name), config)
    engine: Any = model._engine
    try:
        _run(engine, Batch("warm-up", ((WARM_UP_TOKENS, WARM_UP_TOKENS),) * 4), random.Random(0))
        recorder = Recorder(engine.scheduler, time.thread_time if threads == 1 else time.perf_counter)
        start, number = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            for batch in batches(config.max_running):
                if time.perf_counter() - start > seconds and number:
                    break
                progress(f"round {number + 1}: {batch.name}")
                _run(engine, batch, random.Random(number))
            number += 1
        return recorder.steps
    finally:
        model.shutdown()


def _run(engine: Any, batch: Batch, rng: random.Random) -> None:
    from run_gpt.engine.request import Request, SamplingParams

    async def stream(prompt_tokens: int, new_tokens: int) -> None:
        request = Request(
            id=uuid.uuid4().hex,
            prompt_ids=tuple(rng.choices(RANDOM_IDS, k=prompt_tokens)),
            max_new_tokens=new_tokens,
            sampling=SamplingParams(min_new_tokens=new_tokens),
        )
        async for _ in engine.submit(request):
            pass

    async def run() -> None:
        await asyncio.gather(*(stream(prompt, new) for prompt, new in batch.streams))

    asyncio.run(run())


@dataclass(frozen=True)
class DoorCosts:
    """Processor seconds of what is no model: of the gateway, of an executor beside its steps, of a client of ours."""

    gateway_request: float
    """Of each streamed request."""
    gateway_event: float
    """Of each event of it."""
    executor_event: float
    client_event: float
    gateway_probe: float
    """Of each look at a replica's state; in the one who asks."""
    executor_probe: float
    """In the one who is asked."""
    channel_bytes: int
    """Memory of one more replica in a gateway."""
    channel_files: float
    """File descriptors of it."""
    choice: float
    """Of a look at one replica, when one is chosen for a request; a gateway looks at all of them."""
    ready_seconds: float
    """From a server's start until it is ready, its model in the cache."""


class Usage:
    """Processor seconds of a server's gateway and executors, and of this process, since it was made."""

    def __init__(self, pids: dict[str, int]):
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._start = self._now()

    def since(self) -> dict[str, float]:
        """By `gateway`, `executors`, `client`, and `machine`: all of it and all else."""
        return {name: now - self._start[name] for name, now in self._now().items()}

    def _now(self) -> dict[str, float]:
        seconds = {name: sum(process.cpu_times()[:2]) for name, process in self._processes.items()}
        own = resource.getrusage(resource.RUSAGE_SELF)
        executors = sum(used for name, used in seconds.items() if name != "gateway")
        client = own.ru_utime + own.ru_stime
        return {
            "gateway": seconds["gateway"],
            "executors": executors,
            "client": client,
            "machine": busy_seconds(),
        }


def measure_doors(model_name: str, seconds: float) -> DoorCosts:
    """Run a server with one replica of one thread, for about `seconds`."""
    from run_gpt.config import ServeConfig
    from run_gpt.flows import Server

    os.environ["OMP_NUM_THREADS"] = "1"
    config = ServeConfig(model_name=model_name, grpc_port=0, http_port=0, speculate=False)
    start = time.perf_counter()
    with Server(config, on_event=lambda event: None) as server:
        ready_seconds = time.perf_counter() - start
        progress("the doors: whole and streamed answers in turn")
        door = asyncio.run(_door(server, seconds * 0.7))
        progress("probes and channels")
        address = _worker_address(server)
        gateway_probe, executor_probe = asyncio.run(_probes(address, server.pids(), seconds * 0.15))
        channel_bytes, files = asyncio.run(_channels(address, 200))
    return DoorCosts(
        **door,
        gateway_probe=gateway_probe,
        executor_probe=executor_probe,
        channel_bytes=channel_bytes,
        channel_files=files,
        choice=_choice(1000),
        ready_seconds=ready_seconds,
    )


def _choice(replicas: int) -> float:
    """Processor seconds for each of so many replicas, of the least that a choice among them must do."""

    @dataclass
    class Candidate:
        state: str = "ready"
        in_flight: int = 0

    candidates = [Candidate(in_flight=i % 7) for i in range(replicas)]
    start = time.process_time()
    for _ in range(repeat := 100):
        ready = [candidate for candidate in candidates if candidate.state == "ready"]
        fewest = min(candidate.in_flight for candidate in ready)
        _ = [candidate for candidate in ready if candidate.in_flight == fewest]
    return (time.process_time() - start) / repeat / replicas


async def _door(server: Any, seconds: float) -> dict[str, float]:
    """Costs of requests and events: the streamed answers' over the whole ones' is that of their events."""
    used: dict[bool, dict[str, float]] = {False: {}, True: {}}
    requests, events = {False: 0, True: 0}, 0
    async with httpx.AsyncClient(base_url=server.http_url, timeout=120) as client:
        await answer(client, True, chat("warm-up"), 8)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or not requests[True]:
            for streamed in (False, True):
                usage = Usage(server.pids())
                counts = await asyncio.gather(
                    *(answer(client, streamed, chat(f"{i} {end}"), 64) for i in range(4) for _ in range(2))
                )
                for name, value in usage.since().items():
                    used[streamed][name] = used[streamed].get(name, 0.0) + value
                requests[streamed] += len(counts)
                events += sum(counts) if streamed else 0
    per = {name: used[True][name] / requests[True] - used[False][name] / requests[False] for name in used[True]}
    each = events / requests[True]
    return {
        "gateway_request": used[False]["gateway"] / requests[False],
        "gateway_event": per["gateway"] / each,
        "executor_event": max(0.0, per["executors"] / each),
        "client_event": per["client"] / each,
    }


def chat(text: str) -> list[dict[str, str]]:
    """A question."""
    return [{"role": "user", "content": text}]


async def answer(client: httpx.AsyncClient, streamed: bool, messages: list[dict[str, str]], tokens: int) -> int:
    """The number of events of one answer of so many tokens. Raises SystemExit if there is none."""
    body = {"messages": messages, "max_new_tokens": tokens, "min_new_tokens": tokens, "temperature": 0}
    if not streamed:
        (await client.post("/chat", json=body)).raise_for_status()
        return 1
    async with client.stream("POST", "/chat_stream", json=body) as lines:
        lines.raise_for_status()
        return sum([line.startswith("data: {") async for line in lines.aiter_lines()])


def _worker_address(server: Any) -> str:
    answer = httpx.get(f"{server.http_url}/ready").raise_for_status().json()
    return str(answer["replicas"]["each"][0]["address"])


async def _probes(address: str, pids: dict[str, int], seconds: float) -> tuple[float, float]:
    """Processor seconds of a probe: of the one who asks and of the one who is asked."""
    from run_gpt.gateway.replica import Replica

    replica = Replica(address)
    await replica.probe()
    usage, count, end = Usage(pids), 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        await replica.probe()
        count += 1
    used = usage.since()
    await replica.close()
    return used["client"] / count, used["executors"] / count


async def _channels(address: str, count: int) -> tuple[int, float]:
    """Bytes and file descriptors of one more channel to a replica, in the process that has it."""
    from run_gpt.gateway.replica import Replica

    async def grown(replicas: list[Replica], number: int, size: Callable[[], int]) -> int:
        before = size()
        added = [Replica(address) for _ in range(number)]
        for replica in added:
            await replica.probe()
        replicas += added
        return size() - before

    process, replicas = psutil.Process(), list[Replica]()
    await grown(replicas, 20, process.num_fds)
    files = process.num_fds()
    grew = await grown(replicas, count, lambda: int(process.memory_info().rss))
    files = process.num_fds() - files
    await asyncio.gather(*(replica.close() for replica in replicas))
    return grew // count, files / count
