"""Measure the cost of OpenAI's endpoints, structured output and scores, each against the native route in one run.

    python scripts/door_benchmark.py --repeat 5

It starts its own server in the default precision and sends 16 requests at once over HTTP, streamed and whole, in
rounds. It prints medians, ratios, and the processor time of a token in gateway and executor as Markdown. `usage` gives
the tokens.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

from benchmark_contenders import Contender
from benchmark_server import Server

from run_gpt.bench.summary import Summary
from run_gpt.bench.tables import markdown, number
from run_gpt.bench.workload import Prompt

NEW_TOKENS, STREAMS = 64, 16
PROCESSES = ("gateway", "executor 0")
SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "string", "maxLength": 60} for name in ("title", "author", "year", "topic", "text")},
    "required": ["title", "author", "year", "topic", "text"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "book", "schema": SCHEMA}}
TOPICS = ("rivers", "clocks", "whales", "bread", "glass", "maps", "bees", "tides")

Measured = Callable[[Server], Awaitable[Summary]]


def chats(streamed: bool, api: str, **fields: Any) -> Measured:
    """Measure STREAMS chats at once, each with its own question, so that no prompt is reused whole."""
    asked = [
        [{"role": "user", "content": f"{which}: describe a book about {TOPICS[which % len(TOPICS)]} as JSON."}]
        for which in range(STREAMS)
    ]
    prompts = [Prompt(NEW_TOKENS, messages=tuple(messages)) for messages in asked]
    return lambda server: server.burst(prompts, streamed, api, **{"temperature": 0, **fields})


def prompts(*, scored: bool) -> Measured:
    """Measure two prompts of 1,000 random token ids without an answer, plain or scored."""

    async def measure(server: Server) -> Summary:
        ids = [[(i * 7919 + k * 104729 + time.time_ns()) % 40000 + 100 for k in range(1000)] for i in range(2)]
        more = {"echo": True, "logprobs": 1} if scored else {}
        # The ids are in the place of the text.
        asked = [Prompt(0, cast("Any", one)) for one in ids]
        return await server.burst(asked, False, "openai-completions", **more)

    return measure


PLAIN, OPENAI = "/chat, {}", "/v1/chat/completions, {}"
SAMPLED = {"temperature": 1, "seed": 1}
# Each row, and the name of the row with which it is compared.
ROWS: dict[str, tuple[Measured, str | None]] = {}
for streamed, way in ((False, "whole"), (True, "streamed")):
    plain, openai = PLAIN.format(way), OPENAI.format(way)
    ROWS[plain] = chats(streamed, "chat"), PLAIN.format("whole") if streamed else None
    ROWS[openai] = chats(streamed, "openai-chat"), plain
    ROWS[f"json_schema, {way}"] = chats(streamed, "openai-chat", response_format=FORM), openai
    ROWS[f"temperature 1, {way}"] = chats(streamed, "openai-chat", **SAMPLED), openai
    ROWS[f"json_schema, temperature 1, {way}"] = (
        chats(streamed, "openai-chat", response_format=FORM, **SAMPLED),
        f"temperature 1, {way}",
    )
ROWS["prompts of 1,000 tokens, plain"] = prompts(scored=False), None
ROWS["prompts of 1,000 tokens, scored"] = prompts(scored=True), "prompts of 1,000 tokens, plain"


def rate(summary: Summary) -> float:
    """Return tokens per second: of answers, or of prompts where there are no answers."""
    return summary.output_tokens_per_second or summary.total_tokens_per_second or 0.0


async def measure(server: Server, repeat: int) -> dict[str, list[Summary]]:
    """Run `repeat` rounds of all rows in turn, after one that does not count."""
    found: dict[str, list[Summary]] = {name: [] for name in ROWS}
    for turn in range(repeat + 1):
        print(f"round {turn} of {repeat}", file=sys.stderr, flush=True)
        for name, (row, _) in ROWS.items():
            summary = await row(server)
            if turn:
                found[name].append(summary)
    return found


def table(found: dict[str, list[Summary]]) -> str:
    """Return the medians as Markdown."""
    medians = {name: statistics.median(map(rate, summaries)) for name, summaries in found.items()}
    header = ("", "tokens/s", "over", "ratio", "events/answer", *(f"{name}, CPU ms/token" for name in PROCESSES))
    rows = []
    for name, (_, base) in ROWS.items():
        ratio = f"{medians[name] / medians[base]:.2f}" if base else ""
        events = [s.events_per_answer for s in found[name] if s.events_per_answer is not None]
        costs = [[s.server_cpu[process] for s in found[name] if process in s.server_cpu] for process in PROCESSES]
        shown = [number(statistics.median(values)) if values else "" for values in (events, *costs)]
        rows.append((name, f"{medians[name]:,.0f}", base or "", ratio, *shown))
    return markdown(header, rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    server = Server(Contender(options.model, precision="auto", runner="auto"))
    try:
        found = asyncio.run(measure(server, options.repeat))
    finally:
        server.close()
    print(table(found))


if __name__ == "__main__":
    main()
