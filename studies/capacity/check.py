"""Compare a bounded load on a real server with the simulation of the same users."""

import asyncio
import json
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx

from studies.capacity.measure_costs import Usage, chat
from studies.capacity.measure_steps import progress
from studies.capacity.simulation import Cluster, Simulation
from studies.capacity.table import Summary, summary, summary_of
from studies.capacity.users import Request, User, Workload, new_user

WORKLOAD = Workload(
    think_seconds=2.0, turns=4.0, system_tokens=150, question_tokens=50.0, answer_tokens=60.0, max_context=1500
)
"""Busier users than real ones, so that a short run gives figures."""
WARM_UP = 6.0
ANSWER_SECONDS = 120.0
WORDS = re.findall(
    "[a-z]+",
    "river clock whale bread glass map bee tide stone cloud field road wind lamp boat tree bird salt rain door hand "
    "book fire wall song snow moon path hill leaf fish gold rope ship farm king",
)
"""Words that are one token each after a space."""


@dataclass(frozen=True)
class Case:
    """One line of the comparison."""

    replicas: int
    users: int
    measured: Summary
    simulated: Summary
    prompt_tokens: float
    """Measured over simulated length: 1 when the texts have the lengths that were drawn."""
    gateway_busy: float
    """Cores that the real gateway used."""
    others_busy: float
    """Cores that all other programs on the machine used; the simulation has only the remaining cores."""

    def ratios(self) -> dict[str, float]:
        """Return simulated over measured."""
        names = ("tokens_per_second", "ttft_p50", "ttft_p90", "gap_p50", "gap_p90")
        return {name: getattr(self.simulated, name) / getattr(self.measured, name) for name in names}


def check(cluster: Cluster, model: str, replicas: Sequence[int], users: Sequence[int], seconds: float) -> list[Case]:
    """Run a server for each number of replicas, a core each, with each number of users; `cluster` simulates it."""
    from run_gpt.config import ServeConfig
    from run_gpt.flows import Server

    os.environ["OMP_NUM_THREADS"] = str(cluster.replica.threads)
    cases = []
    for count in replicas:
        config = ServeConfig(model_name=model, grpc_port=0, http_port=0, replicas=count, speculate=False)
        progress(f"starting a server with {count} replicas")
        with Server(config, on_event=lambda event: None) as server:
            _wait_for(server, count)
            for number in users:
                progress(f"{number} users for {WARM_UP + seconds:.0f} s")
                cases.append(_case(server, replace(cluster, replicas=count), number, seconds))
    return cases


def _wait_for(server: Any, replicas: int) -> None:
    """Wait until all replicas are ready. Raises SystemExit after ANSWER_SECONDS."""
    end = time.perf_counter() + ANSWER_SECONDS
    while time.perf_counter() < end:
        if httpx.get(f"{server.http_url}/ready").json()["replicas"]["ready"] == replicas:
            return
        time.sleep(0.2)
    raise SystemExit(f"{replicas} replicas did not become ready in {ANSWER_SECONDS:.0f} s")


def _case(server: Any, cluster: Cluster, users: int, seconds: float) -> Case:
    seed = 1000 * cluster.replicas + users  # no two cases share a prompt
    usage, start = Usage(server.pids()), time.perf_counter()
    load = Load(server.http_url, WORKLOAD, users, seed)
    measured = asyncio.run(load.run(seconds))
    used, wall = usage.since(), time.perf_counter() - start
    others = max(0.0, used["machine"] - used["gateway"] - used["executors"] - used["client"]) / wall
    left = replace(cluster, shared_cores=(cluster.shared_cores or 1) - others)
    run = Simulation(left, WORKLOAD, users=users, seed=seed).run(seconds, WARM_UP)
    asked = sum(request.prompt_tokens for request in run.requests) / max(1, len(run.requests))
    return Case(
        cluster.replicas,
        users,
        measured,
        summary_of(run),
        load.mean_prompt() / asked if asked else math.nan,
        used["gateway"] / wall,
        others,
    )


class Load:
    """Users of a workload before a server: the same as in a simulation with the same seed."""

    def __init__(self, url: str, workload: Workload, users: int, seed: int):
        self._url, self._workload, self._seed = url, workload, seed
        self._users = [new_user(number, workload, seed) for number in range(users)]
        self._requests: list[Request] = []
        self._prompts: list[int] = []
        self._gaps: list[tuple[float, int]] = []
        self._tokens = 0
        self._begin = self._end = math.inf

    async def run(self, seconds: float) -> Summary:
        """Let the users ask for `seconds` after WARM_UP, then wait for the remaining answers."""
        self._begin = time.perf_counter() + WARM_UP
        self._end = self._begin + seconds
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self._url, timeout=ANSWER_SECONDS, limits=limits) as client:
            await asyncio.gather(*(self._live(client, user) for user in self._users))
        sent = [request for request in self._requests if self._begin <= request.sent < self._end]
        return summary(sent, self._gaps, self._tokens, seconds)

    def mean_prompt(self) -> float:
        """Return the mean tokens of a prompt, as the server counted them."""
        return sum(self._prompts) / max(1, len(self._prompts))

    async def _live(self, client: httpx.AsyncClient, user: User) -> None:
        await asyncio.sleep(user.rng.uniform(0, user.workload.think_seconds))
        messages: list[dict[str, str]] = []
        conversation = -1
        while time.perf_counter() < self._end:
            question, answer = user.ask()
            if user.conversation != conversation:
                conversation, messages = user.conversation, [{"role": "system", "content": self._system()}]
            messages += chat(_text(user, question))
            request = Request(user, 0, answer, time.perf_counter())
            text = await self._answer(client, messages, request)
            self._requests.append(request)
            messages.append({"role": "assistant", "content": text})
            user.history += question + user.workload.turn_overhead + answer
            await asyncio.sleep(user.think())

    def _system(self) -> str:
        """Return the system prompt of all users of this case; other cases have another."""
        count = self._workload.system_tokens - 8
        return " ".join(WORDS[(self._seed * 7 + i * i) % len(WORDS)] for i in range(count))

    async def _answer(self, client: httpx.AsyncClient, messages: list[dict[str, str]], request: Request) -> str:
        tokens = request.answer_tokens
        body = {"messages": messages, "max_new_tokens": tokens, "min_new_tokens": tokens, "temperature": 0}
        parts, had, last = [], 0, math.nan
        async with client.stream("POST", "/chat_stream", json=body) as answer:
            if answer.status_code == 429:
                request.refused, request.end = True, time.perf_counter()
                return ""
            answer.raise_for_status()
            async for event in _events(answer.aiter_lines()):
                now, usage = time.perf_counter(), event["usage"]
                parts.append(event["choices"][0]["delta"].get("content") or "")
                self._note(request, usage, usage["completion_tokens"] - had, now, last)
                had, last = usage["completion_tokens"], now
        request.end = last
        return "".join(parts)

    def _note(self, request: Request, usage: dict[str, Any], tokens: int, now: float, last: float) -> None:
        if math.isnan(request.first):
            request.first = now
            request.prompt_tokens = usage["prompt_tokens"]
            request.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
            if self._begin <= request.sent < self._end:
                self._prompts.append(request.prompt_tokens)
        elif self._begin <= now < self._end and tokens:
            self._gaps.append((now - last, 1))
        if self._begin <= now < self._end:
            self._tokens += tokens


async def _events(lines: Any) -> Any:
    async for line in lines:
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise SystemExit(f"the server ended an answer: {event['error']}")
            if event.get("choices"):
                yield event


def _text(user: User, tokens: int) -> str:
    # Not from the user's generator: so it draws the same lengths as in the simulation.
    start = user.number * 31 + user.history * 17 + tokens
    return " ".join(WORDS[(start + i * (i + user.number)) % len(WORDS)] for i in range(tokens))


def markdown(cases: Sequence[Case]) -> str:
    """Return the lines of each case: measured, simulated, and simulated over measured."""
    lines = [
        "| replicas | users | | tokens/s | TTFT p50, ms | TTFT p90, ms | between events p50, ms | p90, ms | reused |",
        "|---" * 9 + "|",
    ]
    for case in cases:
        for label, cells in _lines(case):
            lines.append(f"| {case.replicas} | {case.users} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _lines(case: Case) -> Iterator[tuple[str, list[str]]]:
    for label, seen in (("measured", case.measured), ("simulated", case.simulated)):
        times = (seen.ttft_p50, seen.ttft_p90, seen.gap_p50, seen.gap_p90)
        yield (
            label,
            [f"{seen.tokens_per_second:.0f}", *(f"{1000 * value:.1f}" for value in times), f"{seen.reused:.0%}"],
        )
    yield "ratio", [f"**{ratio:.2f}**" for ratio in case.ratios().values()] + [""]
