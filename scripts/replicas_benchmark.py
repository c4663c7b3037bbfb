"""Measure the gain of local replicas over one engine: tokens per second and the time to the first token.

It runs over HTTP against real servers, one with each number of replicas, in the default precision and without
speculation, in rounds. Each load is closed: each client asks again as soon as it has its answer.

    python scripts/replicas_benchmark.py --repeat 3 --json figures.json --write docs/replicas.md

`texts` are prompts of their own with 64 new tokens. `chats` are conversations of 4 turns. Each turn sends all
earlier turns, so that a replica that holds them need not run them again. Tokens per second are the median of rounds,
the times to the first token are of all requests of all rounds. The table goes to stdout, or into the document between
its marks; progress to stderr. Quote figures of a quiet machine only.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from benchmark_contenders import PASSAGE, Contender
from benchmark_server import ANSWER_SECONDS, Server
from document_tables import row, table, with_tables
from machine import surroundings

from run_gpt.bench.connection import Connections
from run_gpt.bench.response import Response
from run_gpt.client.endpoint import Endpoint
from run_gpt.client.sse import EventDecoder

STREAMS = (1, 4, 16)
TEXT_TOKENS, TURN_TOKENS, TURNS = 64, 48, 4
QUESTIONS = ("Where is the harbour?", "When does the ferry leave?", "Who is on it?", "What do the people say of it?")
numbers = count(1000)
"""Numbers of the prompts, so that each begins differently."""


@dataclass(frozen=True)
class Sample:
    """One streamed answer: seconds to its first text, its tokens, its prompt's tokens, and the reused ones of them."""

    first: float
    tokens: int
    prompt: int
    cached: int


@dataclass(frozen=True)
class Measured:
    """One load on one server, once."""

    rate: float
    """Tokens per second of all streams together."""
    samples: list[Sample]


Visit = Callable[[Connections], Awaitable[list[Sample]]]
"""Requests of one client, before the next one takes its place."""


async def ask(server: Connections, path: str, tokens: int, **body: Any) -> tuple[Sample, str]:
    """Return one streamed answer of `tokens` tokens, and its text. Raises SystemExit for any other answer.

    It uses bare sockets and parses the answer at its end, since the client has no cores of its own.
    """
    sent = json.dumps(body | {"max_new_tokens": tokens, "min_new_tokens": tokens}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
    response, start = Response([]), time.perf_counter()
    await server.ask(head.encode() + sent, response)
    if response.status != 200:
        raise SystemExit(f"{path} answered {response.status}")
    first, text, usage, decoder = 0.0, "", {}, EventDecoder()
    for at, event in ((at, json.loads(said)) for at, piece in response.pieces for said in decoder.feed(piece)):
        if "choices" not in event:
            raise SystemExit(f"{path} ended with {event}")
        choice, usage = event["choices"][0], event["usage"]
        text += (choice["delta"].get("content") or "") if "delta" in choice else choice["text"]
        first = first or (at - start if text else 0.0)
    if usage.get("completion_tokens") != tokens:
        raise SystemExit(f"{path} ended with {usage}")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return Sample(first, tokens, usage["prompt_tokens"], cached), text


async def text(server: Connections) -> list[Sample]:
    """Ask with a prompt of its own."""
    sample, _ = await ask(server, "/generate_stream", TEXT_TOKENS, prompt=f"{next(numbers)} years ago, in a far land")
    return [sample]


async def chat(server: Connections) -> list[Sample]:
    """Hold a conversation about a passage."""
    messages = [{"role": "system", "content": f"Text {next(numbers)}: {PASSAGE}"}]
    samples = []
    for turn in range(TURNS):
        messages.append({"role": "user", "content": QUESTIONS[turn % len(QUESTIONS)]})
        sample, said = await ask(server, "/chat_stream", TURN_TOKENS, messages=messages)
        messages.append({"role": "assistant", "content": said})
        samples.append(sample)
    return samples


LOADS: dict[str, tuple[Visit, int]] = {"texts": (text, 8), "chats": (chat, 2)}
"""Loads, each with the fewest visits of one measurement; each stream makes at least two."""


async def measure(url: str, visit: Visit, streams: int, visits: int) -> Measured:
    """Measure `visits` visits by `streams` clients at once."""
    left = iter(range(max(visits, 2 * streams)))
    samples: list[Sample] = []

    async def client() -> None:
        for _ in left:
            samples.extend(await visit(server))

    server, start = Connections(Endpoint.parse(url)), time.perf_counter()
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await asyncio.gather(*(client() for _ in range(streams)))
    finally:
        server.close()
    return Measured(sum(sample.tokens for sample in samples) / (time.perf_counter() - start), samples)


Figures = dict[str, dict[int, dict[int, list[Measured]]]]
"""Figures by load, streams and replicas: one for each round."""


async def rounds(urls: dict[int, str], options: argparse.Namespace) -> Figures:
    """Run the rounds of all loads, after a short one that does not count."""
    figures: Figures = {
        load: {streams: {replicas: [] for replicas in urls} for streams in options.streams} for load in options.loads
    }
    for url in urls.values():
        await measure(url, text, 4, 8)
    for number in range(1, options.repeat + 1):
        for load, by_streams in figures.items():
            visit, visits = LOADS[load]
            for streams, by_replicas in by_streams.items():
                for replicas, measured in by_replicas.items():
                    measured.append(await measure(urls[replicas], visit, streams, visits))
                    what = f"round {number} of {options.repeat}: {load}, {streams} streams, {replicas} replicas"
                    print(f"{what}: {measured[-1].rate:,.0f} tokens/s", file=sys.stderr, flush=True)
    return figures


def as_table(figures: Figures) -> str:
    """Return a table with a row for each load, number of streams and number of replicas."""
    head = ("load", "streams", "replicas", "tokens/s", "ratio", "first token, ms", "90% of them, ms", "prompt reused")
    rows = []
    for load, by_streams in figures.items():
        for streams, by_replicas in by_streams.items():
            base = _rate(next(iter(by_replicas.values())))
            for replicas, measured in by_replicas.items():
                samples = [sample for one in measured for sample in one.samples]
                firsts = sorted(1000 * sample.first for sample in samples)
                reused = sum(sample.cached for sample in samples) / sum(sample.prompt for sample in samples)
                cells = [
                    f"{_rate(measured):,.0f}",
                    f"{_rate(measured) / base:.2f}",
                    f"{statistics.median(firsts):,.0f}",
                ]
                cells += [f"{firsts[int(0.9 * (len(firsts) - 1))]:,.0f}", f"{reused:.0%}"]
                rows.append(row(load, str(streams), str(replicas), *cells))
    return table(head, rows)


def _rate(measured: Sequence[Measured]) -> float:
    return statistics.median(one.rate for one in measured)


def footer(about: dict[str, Any], options: argparse.Namespace) -> str:
    """Return the text under the table."""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    machine = about["gpu"] or f"{about['cpu']}, {about['cores']} cores"
    return f"{options.model}, {machine}, {versions}, {about['date']}; {options.repeat} rounds in turn."


def start(replicas: int, model: str) -> Server:
    """Start a server of `replicas` replicas, and return it when all are ready."""
    server = Server(Contender(model, precision="auto", runner="auto"), "--replicas", str(replicas))
    try:
        deadline = time.monotonic() + ANSWER_SECONDS
        while httpx.get(f"{server.url}/ready").json()["replicas"]["ready"] < replicas:
            if time.monotonic() > deadline:
                raise SystemExit(f"the {replicas} replicas were not ready after {ANSWER_SECONDS:g} s")
            time.sleep(0.1)
    except BaseException:
        server.close()
        raise
    return server


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--repeat", type=int, default=3, help="rounds")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2], help="ratios are to the first")
    parser.add_argument("--streams", type=int, nargs="+", default=list(STREAMS))
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--json", type=Path, help="where every sample goes")
    parser.add_argument("--write", type=Path, help="a document with a place for the table")
    options = parser.parse_args()
    with ExitStack() as servers:
        urls = {n: servers.enter_context(closing(start(n, options.model))).url for n in options.replicas}
        figures = asyncio.run(rounds(urls, options))
    about = surroundings(None)
    if options.json:
        plain = {
            load: {s: {r: [asdict(m) for m in measured] for r, measured in by_r.items()} for s, by_r in by_s.items()}
            for load, by_s in figures.items()
        }
        options.json.write_text(json.dumps({"about": about, "figures": plain}))
    made = f"{as_table(figures)}\n\n{footer(about, options)}"
    if options.write:
        tables = {"replicas": lambda: made}
        options.write.write_text(with_tables(options.write, "scripts/replicas_benchmark.py", tables))
    else:
        print(made)


if __name__ == "__main__":
    main()
