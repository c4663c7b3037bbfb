"""Measures what OpenAI's door, structured output and scores cost, each against the plain native route in the same run.

    python scripts/door_benchmark.py --repeat 5

Over HTTP against a server of its own, in its default precision, rounds in turn; prints medians and ratios as Markdown.
Tokens are those of `usage`.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from benchmark_contenders import Contender
from benchmark_server import ANSWER_SECONDS, Server

NEW_TOKENS = 64
SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "string", "maxLength": 60} for name in ("title", "author", "year", "topic", "text")},
    "required": ["title", "author", "year", "topic", "text"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "book", "schema": SCHEMA}}
TOPICS = ("rivers", "clocks", "whales", "bread", "glass", "maps", "bees", "tides")

Measured = Callable[[httpx.AsyncClient, int], Awaitable[float]]


def chat(which: int) -> list[dict[str, str]]:
    """A question of its own for each stream, so that no prompt is reused whole."""
    return [{"role": "user", "content": f"{which}: describe a book about {TOPICS[which % len(TOPICS)]} as JSON."}]


def whole(path: str, **fields: Any) -> Measured:
    """Tokens per second of so many unary chats at once, seen by the client."""

    async def measure(client: httpx.AsyncClient, streams: int) -> float:
        bodies = [{"messages": chat(i), "temperature": 0, **fields} for i in range(streams)]
        start = time.perf_counter()
        answers = await asyncio.gather(*(client.post(path, json=body) for body in bodies))
        seconds = time.perf_counter() - start
        return float(
            sum(answer.raise_for_status().json()["usage"]["completion_tokens"] for answer in answers) / seconds
        )

    return measure


def streamed(path: str, **fields: Any) -> Measured:
    """Events per second of so many streamed chats at once; those with text."""

    async def read(client: httpx.AsyncClient, body: dict[str, Any]) -> int:
        async with client.stream("POST", path, json=body) as answer:
            answer.raise_for_status()
            return sum([line.startswith("data: {") and '"content":"' in line async for line in answer.aiter_lines()])

    async def measure(client: httpx.AsyncClient, streams: int) -> float:
        bodies = [{"messages": chat(i), "temperature": 0, **fields} for i in range(streams)]
        start = time.perf_counter()
        events = await asyncio.gather(*(read(client, body) for body in bodies))
        return sum(events) / (time.perf_counter() - start)

    return measure


def prompts(*, scored: bool) -> Measured:
    """Tokens per second of prompts of 1,000 random token ids that give no text, plain or scored."""

    async def measure(client: httpx.AsyncClient, streams: int) -> float:
        ids = [[(i * 7919 + k * 104729 + time.time_ns()) % 40000 + 100 for k in range(1000)] for i in range(streams)]
        more = {"echo": True, "logprobs": 1} if scored else {}
        start = time.perf_counter()
        answers = [await client.post("/v1/completions", json={"prompt": one, "max_tokens": 0, **more}) for one in ids]
        seconds = time.perf_counter() - start
        return _tokens(answers, "prompt_tokens") / seconds

    return measure


def _tokens(answers: list[httpx.Response], name: str) -> float:
    return float(sum(answer.raise_for_status().json()["usage"][name] for answer in answers))


# Each row against the one that it names.
ROWS: dict[str, tuple[Measured, int, str | None]] = {
    "/chat, 16 whole answers, tokens/s": (whole("/chat", max_new_tokens=NEW_TOKENS), 16, None),
    "/v1/chat/completions, the same": (
        whole("/v1/chat/completions", max_tokens=NEW_TOKENS),
        16,
        "/chat, 16 whole answers, tokens/s",
    ),
    "/chat_stream, 16 streams, events/s": (streamed("/chat_stream", max_new_tokens=NEW_TOKENS), 16, None),
    "/v1/chat/completions, 16 streams, events/s": (
        streamed("/v1/chat/completions", max_tokens=NEW_TOKENS, stream=True),
        16,
        "/chat_stream, 16 streams, events/s",
    ),
    "json_schema, 16 whole answers, tokens/s": (
        whole("/v1/chat/completions", max_tokens=NEW_TOKENS, response_format=FORM),
        16,
        "/v1/chat/completions, the same",
    ),
    "json_schema, temperature 1, 16 whole answers, tokens/s": (
        whole("/v1/chat/completions", max_tokens=NEW_TOKENS, response_format=FORM, temperature=1, seed=1),
        16,
        "temperature 1, 16 whole answers, tokens/s",
    ),
    "temperature 1, 16 whole answers, tokens/s": (
        whole("/v1/chat/completions", max_tokens=NEW_TOKENS, temperature=1, seed=1),
        16,
        None,
    ),
    "prompts of 1,000 tokens, plain, tokens/s": (prompts(scored=False), 2, None),
    "prompts of 1,000 tokens, scored, tokens/s": (prompts(scored=True), 2, "prompts of 1,000 tokens, plain, tokens/s"),
}


async def measure(url: str, repeat: int) -> dict[str, list[float]]:
    """So many rounds of all rows in turn, after one that does not count."""
    rates: dict[str, list[float]] = {name: [] for name in ROWS}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=ANSWER_SECONDS, limits=limits) as client:
        for number in range(repeat + 1):
            print(f"round {number} of {repeat}", file=sys.stderr, flush=True)
            for name, (row, streams, _) in ROWS.items():
                rate = await row(client, streams)
                if number:
                    rates[name].append(rate)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    server = Server(Contender(options.model, precision="auto", runner="auto"))
    try:
        rates = asyncio.run(measure(server.url, options.repeat))
    finally:
        server.close()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print("| | median | against | ratio |\n|---|---|---|---|")
    for name, (_, _, base) in ROWS.items():
        ratio = f"{medians[name] / medians[base]:.2f}" if base else ""
        print(f"| {name} | {medians[name]:,.0f} | {base or ''} | {ratio} |")


if __name__ == "__main__":
    main()
