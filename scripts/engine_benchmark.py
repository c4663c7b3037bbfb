"""Measure RunGPT's engine on one model, without a server, beside transformers' `generate` in the same run.

The work: prompts of 10 tokens, 64 new tokens each, greedy, end of sequence held back, all streams at once. "Whole
requests" is all new tokens over all the time; "decode steps alone" is the tokens after every stream has its first
token, over that time. Prompts begin with different numbers, so that prefix reuse does not help; with --same-prompt all
streams have the prompt with which peers are measured. Speculation is off except in the row that names it.

Each contender has a process of its own, and they take turns in each round, after one that is not counted: a figure is
the median of the rounds, and (n x) the median of each round's ratio to `generate` in bf16: n times as fast. Quote
ratios, and only those of a quiet machine: a busy neighbour can slow `generate` tenfold and more, since its threads wait
for each other at each layer, and then the ratio is too high. The script reports the most cores that other programs used
while it runs, and under the table.

    python scripts/engine_benchmark.py                                    the default model, as `rungpt serve` runs it
    python scripts/engine_benchmark.py --precision bf16 bit8 --stack      two precisions, and over HTTP as well
    python scripts/engine_benchmark.py --streams 1 --repeat 1             a first look

The table goes to stdout, progress to stderr.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, get_args

from benchmark_contenders import Contender, Prompts
from benchmark_process import Process
from benchmark_server import Server
from benchmark_table import Row, merged, table
from machine import surroundings

from run_gpt.bench.summary import Summary
from run_gpt.bench.workload import Prompt
from run_gpt.config import DEFAULT_MODEL, PRECISIONS, EngineConfig, Runner

SHORT_TOKENS = 64
"""New tokens of each stream."""
REPEATED_TOKENS = 128
WARM_UP_TOKENS = 8
CONTEXT = 1900
PREFIX, TAIL = 1000, 16
HTTP_STREAMS = 16
BASELINE_PRECISION = "bf16"
TELLING = ("avx2", "avx512_f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "sve", "bf16")
"""CPU capabilities that decide its speed of multiplication; the JSON lists all capabilities."""


@dataclass(frozen=True)
class Work:
    """One measurement: a contender's method, its arguments, and the rows for its figures."""

    method: str
    rows: dict[str, Row]
    arguments: dict[str, Any]


def works(streams: list[int], same_prompt: bool) -> Iterator[Work]:
    """Yield the measurements of an engine."""
    for n in streams:
        rows = {
            "whole": Row(f"{_streams(n)}, whole requests", "tokens/s"),
            "decode": Row(f"{_streams(n)}, decode steps alone", "tokens/s"),
        }
        yield Work("streams", rows, {"streams": n, "new_tokens": SHORT_TOKENS, "same": same_prompt})
    yield Work("prefill", {"prefill": Row("prefill of 512 tokens", "tokens/s")}, {"tokens": 512})
    rows = {
        "cold": Row(f"first token after {PREFIX + TAIL} tokens, cold", "ms"),
        "reused": Row(f"first token, {PREFIX} of them seen before", "ms"),
        "share": Row("reused over cold", ""),
    }
    yield Work("first_token", rows, {"tokens": PREFIX, "tail": TAIL})
    for n in (1, 4):
        rows = {"decode": Row(f"{_streams(n)} after {CONTEXT} tokens, decode steps alone", "tokens/s")}
        yield Work("contexts", rows, {"streams": n, "tokens": CONTEXT, "new_tokens": SHORT_TOKENS})


def _streams(n: int) -> str:
    return f"{n} stream" if n == 1 else f"{n} streams"


def progress(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


def run_rounds(repeat: int, measure: Callable[[bool], None]) -> None:
    """Call `measure(counts)` once to warm up, then `repeat` times that count."""
    measure(False)
    for _ in range(repeat):
        measure(True)


def measure_work(work: Work, processes: list[Process], numbers: Iterator[int], repeat: int) -> None:
    """Fill the work's rows."""

    def one_round(counts: bool) -> None:
        number = next(numbers)
        arguments = dict(work.arguments)
        if "new_tokens" in arguments and not counts:
            arguments["new_tokens"] = WARM_UP_TOKENS
        for process in processes:
            figures = process.call(work.method, number=number, **arguments)
            if counts:
                for key in work.rows.keys() & figures.keys():
                    work.rows[key].rounds.setdefault(process.name, []).append(figures[key])

    progress(next(iter(work.rows.values())).label)
    run_rounds(repeat, one_round)


def measure_speculation(process: Process, numbers: Iterator[int], repeat: int) -> list[Row]:
    """Measure one stream that repeats a text, in turn in an engine without and in one with speculation."""
    off = Row("1 stream that repeats a text, decode steps alone, speculation off", "tokens/s")
    on = Row("1 stream that repeats a text, decode steps alone, speculation on", "tokens/s")
    gain = Row("speculation on over off", "")
    accepted = Row("share of drafted tokens that were right", "")
    progress(f"{process.name}: {on.label}")
    with closing(Process(replace(process.contender, speculate=True))) as speculating:

        def one_round(counts: bool) -> None:
            arguments = {"number": next(numbers), "new_tokens": REPEATED_TOKENS}
            plain = process.call("repetition", **arguments)["rate"]
            figures = speculating.call("repetition", **arguments)
            values = (plain, figures["rate"], figures["rate"] / plain, figures["accepted"])
            if counts:
                for row, value in zip((off, on, gain, accepted), values, strict=True):
                    row.rounds.setdefault(process.name, []).append(value)

        run_rounds(repeat, one_round)
    return [off, on, gain, accepted]


def measure_stack(process: Process, numbers: Iterator[int], repeat: int) -> list[Row]:
    """Measure the same requests in turn in the engine and over HTTP, streamed and whole, and each process's CPU."""
    rows: dict[str, Row] = {}
    progress(f"{process.name}: {_streams(HTTP_STREAMS)} over HTTP through the whole stack")

    def note(label: str, unit: str, value: float) -> None:
        rows.setdefault(label, Row(label, unit)).rounds.setdefault(process.name, []).append(value)

    with closing(Server(process.contender)) as server:

        def one_round(counts: bool) -> None:
            number = next(numbers)
            arguments = {"streams": HTTP_STREAMS, "new_tokens": SHORT_TOKENS, "same": False}
            engine = process.call("streams", number=number, **arguments)["whole"]
            prompts = [Prompt(SHORT_TOKENS, Prompts.short_text(number + i)) for i in range(HTTP_STREAMS)]
            served = {
                way: asyncio.run(server.burst(prompts, way == "streamed", min_new_tokens=SHORT_TOKENS))
                for way in ("streamed", "whole")
            }
            if counts:
                note(f"{_streams(HTTP_STREAMS)}, the engine alone beside it", "tokens/s", engine)
                for way, summary in served.items():
                    _note_stack(note, way, summary, engine)

        run_rounds(repeat, one_round)
    return list(rows.values())


def _note_stack(note: Callable[[str, str, float], None], way: str, served: Summary, engine: float) -> None:
    """Note the rows of answers over HTTP, streamed or whole."""
    rate = served.output_tokens_per_second
    note(f"{_streams(HTTP_STREAMS)} over HTTP, {way}", "tokens/s", rate)
    note(f"over HTTP, {way}, over the engine alone", "", rate / engine)
    for name, ms in served.server_cpu.items():
        if name != "supervisor":  # it waits
            note(f"over HTTP, {way}: CPU of {name}, ms/token", "", ms)
    if served.events_per_answer is not None:
        note(f"over HTTP, {way}: events/answer", "", served.events_per_answer)


def measure(options: argparse.Namespace) -> tuple[list[str], list[Row], float]:
    """Return the contenders' names, the baseline first; all rows; the most cores that other programs used."""
    running = max(*options.streams, HTTP_STREAMS, EngineConfig.max_running)
    wanted: list[tuple[str, str | None]] = [(BASELINE_PRECISION, None)]
    wanted += [(precision, runner) for precision in options.precision for runner in options.runner]
    # Blocks of numbers: no two prompts of a run share a number.
    numbers = count(step=max(*options.streams, HTTP_STREAMS))
    rows: list[Row] = []
    with ExitStack() as stack:
        processes = []
        for precision, runner in wanted:
            progress(
                f"loading {options.model} in {precision}" + (f", runner {runner}" if runner else " for `generate`")
            )
            process = Process(Contender(options.model, precision, runner, running, options.threads))
            stack.callback(process.close)
            processes.append(process)
        for work in works(options.streams, options.same_prompt):
            measure_work(work, processes, numbers, options.repeat)
            rows += work.rows.values()
        for process in processes[1:]:
            rows += measure_speculation(process, numbers, options.repeat)
            if options.stack:
                rows += measure_stack(process, numbers, options.repeat)
        for key, label in (("model", "memory of the model and its runner"), ("peak", "most memory of the process")):
            row = Row(label, "MB", {process.name: [process.call("memory")[key]] for process in processes})
            rows.append(row)
        disturbed = max(process.disturbed for process in processes)
        return [process.name for process in processes], merged(rows), disturbed


def footer(about: dict[str, Any], options: argparse.Namespace) -> str:
    """Return the text under the table."""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    telling = ", ".join(name for name in TELLING if name in about["capabilities"])
    machine = about["gpu"] or f"{about['cpu']}, {about['cores']} cores ({telling})"
    prompts = "the same prompt in every stream" if options.same_prompt else "a prompt of its own in every stream"
    return (
        f"{about['date']}, {options.model} on {machine}, {about['threads']} threads; {versions}. Medians of "
        f"{options.repeat} rounds, all contenders in turn; {SHORT_TOKENS} new tokens, {prompts}; speculation off but "
        "where it is named; (n x): n times as fast as the first column. Other programs used at most "
        f"{about['cores_used_by_others']:.1f} cores meanwhile."
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", nargs="?", default=DEFAULT_MODEL, help="what `rungpt serve` takes; default: %(default)s")
    add("--precision", nargs="+", choices=PRECISIONS, default=["auto"], help="one or several; default: auto")
    add("--runner", nargs="+", choices=get_args(Runner), default=["auto"], help="one or several; default: auto")
    add("--streams", nargs="+", type=int, default=[1, 4, 16, 64], help="streams at once; default: 1 4 16 64")
    add("--repeat", type=int, default=3, help="rounds that count; default: %(default)s")
    add("--threads", type=int, help="threads of every contender; default: torch's choice")
    add("--same-prompt", action="store_true", help="one prompt for all short streams, as peers are measured")
    add("--stack", action="store_true", help=f"also {HTTP_STREAMS} requests over HTTP, streamed and whole")
    add("--json", type=Path, metavar="FILE", help="write every round's figures there as well")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the processes end too
    if options.threads is not None:  # before torch is imported, here and in the processes
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    names, rows, disturbed = measure(options)
    about = {**surroundings(options.threads), "cores_used_by_others": round(disturbed, 2)}
    print(f"{table(names, rows)}\n\n{footer(about, options)}")
    if options.json is not None:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        record = {**about, "settings": settings, "rows": [row.record(names[0]) for row in rows]}
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
