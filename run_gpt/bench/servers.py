"""Comparison of several servers, and the engine in this process, under the same bursts. Result files can be joined.

A burst is a number of simultaneous requests, each with PROMPT_WORDS words and exactly NEW_TOKENS greedy tokens. Answers
are streamed or whole.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from run_gpt.bench.lengths import Lengths
from run_gpt.bench.load import Bounds, Level, run_level
from run_gpt.bench.online import Plan, Target, connect
from run_gpt.bench.processes import find_own
from run_gpt.bench.protocol import APIS
from run_gpt.bench.results import environment
from run_gpt.bench.sender import ModelSender
from run_gpt.bench.summary import Summary, summarise
from run_gpt.bench.workload import Workload, WorkloadConfig
from run_gpt.client.endpoint import Endpoint
from run_gpt.config import Precision
from run_gpt.errors import SetupError

PROMPT_WORDS, NEW_TOKENS, WARM_UP_TOKENS = 10, 64, 8
STREAMS = (1, 4, 16, 64)
SCHEMA, VERSION = "rungpt.bench.servers", 1
_GREEDY = {"temperature": 0}
_NO_END = 1e6  # seconds: only the number of requests bounds a burst


@dataclass
class Measured:
    """Measurements of one server: a summary for each round of each load."""

    name: str
    environment: dict[str, Any]
    rounds: dict[Level, list[Summary]] = field(default_factory=dict)


async def connect_server(endpoint: str, pid: int | None, token: str | None, *, endless: bool = False) -> Target:
    """Connect to the server at an endpoint, with OpenAI's API if it ends in /v1, else with RunGPT's own.

    `pid` is its process on this machine; None: the process that listens at the endpoint. `endless`: its model has no
    end of sequence, so `ignore_eos` is not sent. Raises SetupError if it does not answer.
    """
    native = not endpoint.rstrip("/").endswith("/v1")
    plan = Plan(
        Endpoint.parse(endpoint),
        (Level("closed", 1),),
        _prompts(NEW_TOKENS),
        api_name="generate" if native else "openai-completions",
        exact_output=native,
        # OpenAI's API has no field for this; vLLM, llama.cpp and others have `ignore_eos`.
        extra_body=_GREEDY if native or endless else {**_GREEDY, "ignore_eos": True},
        server_pid=pid,
    )
    return await connect(plan, token)


def load_engine(model: str, precision: Precision) -> Target:
    """Load the engine in this process, as the baseline for servers: without speculation and without kept prefixes."""
    from run_gpt.local.create import create_model

    loaded = create_model(model, precision=precision, speculate=False, reuse_prefixes=False)
    api = APIS["generate"]

    def body(prompt: Any, streamed: bool) -> dict[str, Any]:
        return api.body(prompt, streamed, None, exact=True, extra=_GREEDY)

    return Target(ModelSender(loaded, api, body), find_own(), model)


async def measure_servers(
    targets: Mapping[str, Target], streams: Sequence[int], rounds: int, on_round: Callable[[str], None]
) -> list[Measured]:
    """Measure all servers in turn in each round, with each burst streamed and whole. A first round is not counted.

    Raises SetupError for a server that does not answer, or whose answers do not have the requested length.
    """
    measured = {name: Measured(name, environment(target.models)) for name, target in targets.items()}
    loads = [Level("closed", n, streamed) for n in streams for streamed in (True, False)]
    for number in range(rounds + 1):
        tokens = NEW_TOKENS if number else WARM_UP_TOKENS
        for i, load in enumerate(loads):
            on_round(f"round {number} of {rounds}: {load}")
            for name, target in targets.items():
                # All servers get the same prompts. None is repeated: a kept prefix would make a server look faster.
                summary = await _burst(target, load, tokens, number * len(loads) + i)
                _check(name, summary, tokens)
                if number:
                    measured[name].rounds.setdefault(load, []).append(summary)
    return list(measured.values())


async def _burst(target: Target, load: Level, tokens: int, stream: int) -> Summary:
    workload = Workload(_prompts(tokens), takes_chats=False, stream=stream)
    bounds = Bounds(requests=int(load.value), seconds=_NO_END)
    return summarise(await run_level(load, target.sender, workload, bounds, server=target.processes), {})


def _check(name: str, summary: Summary, tokens: int) -> None:
    if summary.failures:
        raise SetupError(f"{name}, {summary.level}: requests failed: {summary.failures}")
    if summary.counted_by != "usage":
        raise SetupError(f"{name} gives no usage: how many tokens its answers have is not known")
    if summary.output_tokens != tokens:
        raise SetupError(
            f"{name}, {summary.level}: answers had {summary.output_tokens:g} tokens, not {tokens}: it does not hold "
            "the end of sequence back, and cannot be compared"
        )


def _prompts(tokens: int) -> WorkloadConfig:
    return WorkloadConfig(Lengths("fixed", PROMPT_WORDS), Lengths("fixed", tokens))


def write_json(measured: Sequence[Measured], path: Path) -> None:
    """Write everything into a file, which `read_json` reads. Raises SetupError if it cannot be written."""
    servers = [
        {
            "name": one.name,
            "environment": one.environment,
            "rounds": [summary.to_dict() for summaries in one.rounds.values() for summary in summaries],
        }
        for one in measured
    ]
    try:
        path.write_text(json.dumps({"schema": SCHEMA, "version": VERSION, "servers": servers}, indent=1))
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from None


def read_json(path: Path) -> list[Measured]:
    """Read a file of `write_json`. Raises SetupError for any other file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if (document["schema"], document["version"]) != (SCHEMA, VERSION):
            raise SetupError(f"{path} is of {document['schema']}, version {document['version']}: measure anew")
        found = []
        for server in document["servers"]:
            one = Measured(server["name"], server["environment"])
            for summary in map(Summary.from_dict, server["rounds"]):
                one.rounds.setdefault(summary.level, []).append(summary)
            found.append(one)
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, LookupError):
        raise SetupError(f"{path} is no result of scripts/server_benchmark.py --json") from None
    return found
