"""Measures a server: finds its model, warms it up, and applies one load after the other, or sweeps for saturation."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import httpx

from run_gpt.bench.load import Bounds, Level, OnProgress, run_level
from run_gpt.bench.processes import ServerProcesses, find
from run_gpt.bench.protocol import APIS, Api
from run_gpt.bench.results import Results, environment
from run_gpt.bench.sender import HttpSender, ModelSender, Sender, authorization, base_url
from run_gpt.bench.summary import Summary, summarise
from run_gpt.bench.sweep import sweep
from run_gpt.bench.workload import Workload, WorkloadConfig
from run_gpt.client import Client
from run_gpt.client.endpoint import Endpoint
from run_gpt.client.trust import given_ca, http_trust
from run_gpt.errors import SetupError

_ASK_SECONDS = 10.0  # timeout of the request for the model names
_WARM_TOGETHER = 4


@dataclass(frozen=True)
class Plan:
    """Plan of a measurement. Raises SetupError if it is not possible."""

    endpoint: Endpoint
    levels: tuple[Level, ...]
    workload: WorkloadConfig
    api_name: str | None = None
    """Name in APIS; None: `openai-chat` over HTTP, RunGPT's own `chat` over gRPC."""
    model: str | None = None
    """Name of the model; None: the first in /v1/models. Native servers need none."""
    sweep: bool = False
    """Start at the only level and raise it until the server is saturated."""
    bounds: Bounds = field(default_factory=Bounds)
    warmup: int = 4
    """Number of requests before the first load, which are not counted."""
    limits: dict[str, float] = field(default_factory=dict)
    exact_output: bool = False
    extra_body: dict[str, Any] = field(default_factory=dict)
    server_pid: int | None = None
    """Root of the server's processes; None: the process that listens at a loopback endpoint."""

    def __post_init__(self) -> None:
        api = self.api
        if self.endpoint.is_grpc and not api.native:
            raise SetupError(f"--api {api.name} is for HTTP; over gRPC use --api chat or generate")
        if self.exact_output and not api.native:
            raise SetupError(
                "--exact-output is for --api chat and generate; with another server use its own field, "
                """such as --extra-body '{"ignore_eos": true}'"""
            )
        if not self.levels or (self.sweep and len(self.levels) > 1):
            raise SetupError("--sweep begins at one load: give one --concurrency or one --rate, streamed or whole")
        for level in self.levels:
            if level.kind == "closed" and level.value > self.bounds.requests:
                raise SetupError(f"{level} needs as many requests: raise --requests {self.bounds.requests}")

    @property
    def api(self) -> Api:
        """API of the requests."""
        return APIS[self.api_name or ("chat" if self.endpoint.is_grpc else "openai-chat")]

    def arguments(self, model: str | None) -> dict[str, Any]:
        """Return the arguments for the results."""
        given = asdict(self.workload)
        lengths = {name: _shown(given.pop(name)) for name in ("prompt_words", "output_tokens")}
        return {
            "endpoint": str(self.endpoint),
            "api": self.api.name,
            "model": model,
            "sweep": self.sweep,
            **lengths,
            **given,
            "dataset": self.workload.dataset and self.workload.dataset.name,
            **asdict(self.bounds),
            "warmup": self.warmup,
            "exact_output": self.exact_output,
            "extra_body": self.extra_body,
        }


@dataclass(frozen=True)
class Target:
    """A server that answers requests: its sender, and its processes if they are visible."""

    sender: Sender
    processes: ServerProcesses | None = None
    model: str | None = None
    models: Any = None
    """JSON of /v1/models."""


async def measure(
    plan: Plan, token: str | None, on_progress: OnProgress, on_begin: Callable[[Results], None] = lambda results: None
) -> Results:
    """Run all measurements of the plan. Raises SetupError if the server answers no request.

    `on_begin` receives the results before they are filled, so that an interrupted run keeps its complete loads.
    """
    target = await connect(plan, token)
    results = Results(environment(target.models), plan.arguments(target.model), plan.limits, [])
    on_begin(results)
    try:
        await _warm_up(plan, target.sender)
        await _measure_levels(plan, target, results, on_progress)
    finally:
        await target.sender.aclose()
    return results


async def connect(plan: Plan, token: str | None) -> Target:
    """Connect to the server of the plan. Raises SetupError if it does not answer, or if its model is not known."""
    client = Client(token)  # raises an error for an invalid key
    models = None if plan.endpoint.is_grpc else await _models(plan.endpoint, token)
    model = plan.model or _first(models)
    if model is None and not plan.api.native:
        raise SetupError(f"{plan.endpoint} does not list its models: give --model NAME")
    processes = find(plan.endpoint, plan.server_pid)
    body = partial(plan.api.body, model=model, exact=plan.exact_output, extra=plan.extra_body)
    if plan.endpoint.is_grpc:
        sender: Sender = ModelSender(client.get_model(endpoint=str(plan.endpoint)), plan.api, body)
    else:
        sender = HttpSender(plan.endpoint, plan.api, token, body)
    return Target(sender, processes, model, models)


async def _measure_levels(plan: Plan, target: Target, results: Results, on_progress: OnProgress) -> None:
    async def one(level: Level) -> Summary:
        stream = len(results.runs) + 1
        workload = Workload(plan.workload, takes_chats=plan.api.chats, stream=stream)
        seed = plan.workload.seed
        server = target.processes
        results.runs.append(await run_level(level, target.sender, workload, plan.bounds, seed, on_progress, server))
        return summarise(results.runs[-1], plan.limits)

    if not plan.sweep:
        for level in plan.levels:
            await one(level)
        return
    start = plan.levels[0]
    # With fewer than four requests for each in flight, a load would mostly consist of its start and end.
    most = plan.bounds.requests / 4 if start.kind == "closed" else plan.bounds.requests
    results.saturation = await sweep(start, most, one)


async def _warm_up(plan: Plan, sender: Sender) -> None:
    """Send a few requests that are not counted. Raises SetupError if none is answered."""
    workload = Workload(plan.workload, takes_chats=plan.api.chats, stream=0)
    if not plan.warmup:
        return
    bounds = Bounds(plan.warmup, plan.bounds.seconds, plan.bounds.timeout)
    level = Level("closed", min(_WARM_TOGETHER, plan.warmup), plan.levels[0].streamed)
    run = await run_level(level, sender, workload, bounds)
    if not any(sample.ok for sample in run.samples):
        first = run.samples[0]
        raise SetupError(f"{plan.endpoint} answers no request: {first.failure}: {first.detail}")


async def _models(endpoint: Endpoint, token: str | None) -> Any:
    """Return the JSON of /v1/models; None without it. Raises SetupError if nothing answers, or the key is wrong."""
    verify = http_trust(endpoint.is_secure, given_ca())
    async with httpx.AsyncClient(timeout=_ASK_SECONDS, verify=verify, trust_env=False) as client:
        try:
            response = await client.get(f"{base_url(endpoint)}/v1/models", headers=authorization(token))
        except httpx.HTTPError as error:
            why = f"{type(error).__name__} {error}".strip()
            raise SetupError(f"no server answers at {endpoint} ({why}): is it running there?") from None
    if response.status_code in (401, 403):
        raise SetupError(f"{endpoint} refuses the key: give another by RUNGPT_API_KEY")
    try:
        return json.loads(response.content) if response.status_code == httpx.codes.OK else None
    except ValueError:
        return None


def _first(models: Any) -> str | None:
    try:
        return str(models["data"][0]["id"])
    except (TypeError, LookupError):
        return None


def _shown(lengths: dict[str, Any]) -> str:
    """Format lengths as they are written on the command line."""
    numbers: Sequence[float] = [lengths["a"]] if lengths["kind"] == "fixed" else [lengths["a"], lengths["b"]]
    return ":".join(([] if lengths["kind"] == "fixed" else [lengths["kind"]]) + [f"{n:g}" for n in numbers])
