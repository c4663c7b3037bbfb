"""Measure the costs outside the model: requests, events, probes, connections in gateway, executor and client."""

import asyncio
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

from scripts.machine import busy_seconds
from studies.capacity.costs import Costs
from studies.capacity.measure_steps import progress


class Usage:
    """Processor seconds of a server's gateway and executors, and of this process, since this object was made."""

    def __init__(self, pids: dict[str, int]):
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._start = self._now()

    def since(self) -> dict[str, float]:
        """Return the seconds of `gateway`, `executors`, `client`, and `machine`, which includes all programs."""
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


def measure_costs(model_name: str, seconds: float) -> Costs:
    """Measure a server with one replica of one thread, for about `seconds`."""
    from run_gpt.config import ServeConfig
    from run_gpt.flows import Server

    os.environ["OMP_NUM_THREADS"] = "1"
    config = ServeConfig(model_name=model_name, grpc_port=0, http_port=0, speculate=False)
    start = time.perf_counter()
    with Server(config, on_event=lambda event: None) as server:
        ready_seconds = time.perf_counter() - start
        progress("requests: whole and streamed answers in turn")
        costs = asyncio.run(_request_costs(server, seconds * 0.7))
        progress("probes and channels")
        address = _worker_address(server)
        gateway_probe, executor_probe = asyncio.run(_probes(address, server.pids(), seconds * 0.15))
        channel_bytes, files = asyncio.run(_channels(address, 200))
    return Costs(
        **costs,
        gateway_probe=gateway_probe,
        executor_probe=executor_probe,
        channel_bytes=channel_bytes,
        channel_files=files,
        choice=_choice(1000),
        ready_seconds=ready_seconds,
    )


def _choice(replicas: int) -> float:
    """Return the processor seconds per replica of the smallest possible choice among `replicas`."""

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


async def _request_costs(server: Any, seconds: float) -> dict[str, float]:
    """Return the costs of requests and events. An event's cost is the extra cost of streamed over whole answers."""
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
    """Return the messages of a question."""
    return [{"role": "user", "content": text}]


async def answer(client: httpx.AsyncClient, streamed: bool, messages: list[dict[str, str]], tokens: int) -> int:
    """Ask for one answer of `tokens` tokens and count its events. Raises httpx.HTTPStatusError if it fails."""
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
    """Return the processor seconds of a probe, in the gateway and in the executor."""
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
    """Return bytes and file descriptors of one more channel to a replica, in the process that has it."""
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
