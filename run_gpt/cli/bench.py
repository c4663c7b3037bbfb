"""`rungpt bench serve` and `rungpt bench compare`."""

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from run_gpt.cli import options
from run_gpt.cli.bench_model import model
from run_gpt.errors import SetupError

if TYPE_CHECKING:
    from run_gpt.bench.load import Level
    from run_gpt.bench.results import Results

app = typer.Typer(help="Measure a model or a server, and compare results.", no_args_is_help=True)

LOAD, PROMPTS, OUTPUT = "Load", "Prompts and answers", "Results"
_LENGTHS = "N, uniform:LO:HI, normal:MEAN:SD or lognormal:MEDIAN:SIGMA"


class ApiName(StrEnum):
    """Names of the APIs in bench/protocol.py. Repeated so that `--help` need not import it; a test compares both."""

    OPENAI_CHAT = "openai-chat"
    OPENAI_COMPLETIONS = "openai-completions"
    CHAT = "chat"
    GENERATE = "generate"


class Answers(StrEnum):
    """Ways to request answers."""

    STREAMED = "streamed"
    WHOLE = "whole"
    BOTH = "both"


def _load(*flags: str, **more: Any) -> Any:
    return typer.Option(*flags, rich_help_panel=LOAD, **more)


def _prompts(*flags: str, **more: Any) -> Any:
    return typer.Option(*flags, rich_help_panel=PROMPTS, **more)


def _output(*flags: str, **more: Any) -> Any:
    return typer.Option(*flags, rich_help_panel=OUTPUT, dir_okay=False, **more)


@app.command()
def serve(
    endpoint: Annotated[
        str, typer.Option(help="The server: http://HOST:PORT, with or without /v1, or grpc://HOST:PORT.")
    ] = "http://127.0.0.1:52000",
    api: Annotated[
        ApiName | None,
        typer.Option(help="The server's API; default: openai-chat, over gRPC chat.", show_default=False),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Default: the first that /v1/models names.")] = None,
    api_key: options.ApiKey = None,
    server_pid: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The server's process here, for its CPU time. Default: the one that listens at --endpoint.",
        ),
    ] = None,
    answers: Annotated[
        Answers, _load(help="Ask for streams, for answers in one piece, or for both in turn.")
    ] = Answers.STREAMED,
    concurrency: Annotated[
        str | None, _load(metavar="N,N,...", help="Closed loop: requests in flight. Default: 1,4,16.")
    ] = None,
    rate: Annotated[
        str | None, _load(metavar="R,R,...", help="Open loop: requests a second, at random times (Poisson).")
    ] = None,
    sweep: Annotated[
        bool, _load("--sweep", help="Double the one --concurrency (default: 1) or --rate until nothing is gained.")
    ] = False,
    requests: Annotated[int, _load(min=1, help="Most requests of each load.")] = 200,
    seconds: Annotated[float, _load(min=0.1, help="No request of a load is sent after so many.")] = 60.0,
    timeout: Annotated[float, _load(min=0.1, help="Seconds after which a request is given up.")] = 120.0,
    warmup: Annotated[int, _load(min=0, help="Requests before the first load, which do not count.")] = 4,
    goodput: Annotated[
        str | None,
        _load(metavar="LIMITS", help="Limits in ms: 'ttft:1000 tpot:50 e2e:10000'; count the answers that keep them."),
    ] = None,
    prompt_words: Annotated[str, _prompts(metavar="LENGTH", help=f"Words of a question: {_LENGTHS}.")] = "128",
    output_tokens: Annotated[
        str, _prompts(metavar="LENGTH", help="Most tokens of an answer, written likewise.")
    ] = "64",
    exact_output: Annotated[
        bool, _prompts("--exact-output", help="Not less either (min_new_tokens); --api chat and generate.")
    ] = False,
    dataset: Annotated[
        Path | None,
        _prompts(dir_okay=False, help="Questions from a JSON or JSONL file: texts, chats or ShareGPT's form."),
    ] = None,
    system_words: Annotated[int, _prompts(min=0, help="Words of a system prompt that all chats begin with.")] = 0,
    turns: Annotated[int, _prompts(min=1, help="Questions of a chat, each after the answers before it.")] = 1,
    seed: Annotated[int, _prompts(min=0, help="Of texts, lengths and times.")] = 0,
    extra_body: Annotated[
        str | None, _prompts(metavar="JSON", help="""Fields of each request, such as '{"temperature": 0}'.""")
    ] = None,
    json_file: Annotated[Path | None, _output("--json", help="Every sample, for `compare`.")] = None,
    csv_file: Annotated[Path | None, _output("--csv", help="A line for each load.")] = None,
    html_file: Annotated[Path | None, _output("--html", help="A report with plots, in one file.")] = None,
    png: Annotated[
        Path | None, typer.Option(file_okay=False, help="The plots, into a folder.", rich_help_panel=OUTPUT)
    ] = None,
    write: Annotated[
        Path | None,
        _output("--write", help="A Markdown document in which tables, and plots of --png, go between their marks."),
    ] = None,
    formulas: Annotated[bool, typer.Option("--formulas", help="Print how each figure is computed, and end.")] = False,
) -> None:
    """Put a load on a server and print throughput and latencies.

    Tokens are counted by the server's `usage`. Each load is bounded by --requests and --seconds.
    """
    from run_gpt.bench import document, plots, tables
    from run_gpt.bench.lengths import Lengths
    from run_gpt.bench.load import Bounds
    from run_gpt.bench.online import Plan, measure
    from run_gpt.bench.processes import is_local
    from run_gpt.bench.results import Results
    from run_gpt.bench.summary import FORMULAS, parse_goodput
    from run_gpt.bench.workload import WorkloadConfig
    from run_gpt.cli.bench_progress import load_progress
    from run_gpt.cli.progress import console
    from run_gpt.client.endpoint import Endpoint

    if formulas:
        print(FORMULAS)
        return
    if html_file or png:
        plots.check()
    _check_folders(json_file, csv_file, html_file)
    if write:
        document.SERVER.check(write)
    plan = Plan(
        endpoint=Endpoint.parse(endpoint),
        api_name=api,
        model=model,
        levels=_levels(concurrency, rate, sweep, answers),
        sweep=sweep,
        workload=WorkloadConfig(
            prompt_words=Lengths.parse(prompt_words, "--prompt-words"),
            output_tokens=Lengths.parse(output_tokens, "--output-tokens"),
            dataset=dataset,
            system_words=system_words,
            turns=turns,
            seed=seed,
        ),
        bounds=Bounds(requests, seconds, timeout),
        warmup=warmup,
        limits=parse_goodput(goodput),
        exact_output=exact_output,
        extra_body=_json_object(extra_body),
        server_pid=server_pid,
    )
    begun: list[Results] = []
    interrupted = False
    try:
        with load_progress(requests) as on_progress:
            asyncio.run(measure(plan, options.token(api_key), on_progress, begun.append))
    except KeyboardInterrupt:
        if not begun or not begun[0].runs:
            raise
        interrupted = True
    results = begun[0]
    print(f"{tables.text(results.summaries)}\n\n{FORMULAS}")
    _tell(results)
    if not any(run.server_seconds for run in results.runs) and (server_pid or is_local(plan.endpoint)):
        console.print("The server's CPU time is left out: its processes cannot be seen. --server-pid names one.")
    _write(results, json_file, csv_file, html_file, png)
    if write:
        drawn = plots.TITLES if png else {}
        addresses = {title: os.path.relpath(f"{png}/{name}.png", write.parent) for name, title in drawn.items()}
        document.SERVER.write(write, tables.document(results, addresses))
    if interrupted:
        console.print("Interrupted: these are the loads that were complete.")
        raise typer.Exit(130)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A.json", help="A file that `rungpt bench serve --json` wrote.")],
    b: Annotated[Path, typer.Argument(metavar="B.json", help="Another, of the same loads.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 0,
) -> None:
    """Print the ratios B / A of medians and rates for each load, with their 95 % intervals."""
    from run_gpt.bench import compare as comparing
    from run_gpt.bench.results import read_json
    from run_gpt.cli.progress import console

    left, right = read_json(a), read_json(b)
    print(f"{comparing.table(comparing.compare(left, right, seed))}\n\n{comparing.FORMULAS}")
    common = comparing.common_levels(left, right)
    for name, results in (("A", left), ("B", right)):
        if only := [str(run.level) for run in results.ordered if run.level not in common]:
            console.print(f"only in {name}: {', '.join(only)}", markup=False, soft_wrap=True)


def _levels(concurrency: str | None, rate: str | None, sweep: bool, answers: Answers) -> "tuple[Level, ...]":
    from run_gpt.bench.load import Level

    if concurrency is None and rate is None:
        concurrency = "1" if sweep else "1,4,16"
    closed = [Level("closed", value) for value in _numbers(concurrency, "--concurrency")]
    if not all(level.value.is_integer() for level in closed):
        raise SetupError(f"--concurrency {concurrency}: write whole numbers, such as 1,4,16")
    loads = (*closed, *(Level("open", value) for value in _numbers(rate, "--rate")))
    ways = {Answers.STREAMED: (True,), Answers.WHOLE: (False,), Answers.BOTH: (True, False)}[answers]
    return tuple(replace(load, streamed=streamed) for load in loads for streamed in ways)


def _numbers(text: str | None, option: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        values = [0.0]
    if not all(0 < value < 1e5 for value in values) or len(set(values)) < len(values):
        raise SetupError(f"{option} {text}: write different numbers above 0, such as 1,4,16")
    return values


def _json_object(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise SetupError(f"--extra-body {text}: this is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise SetupError(f"""--extra-body {text}: write an object, such as '{{"temperature": 0}}'""")
    return value


def _check_folders(*paths: Path | None) -> None:
    """Raise SetupError for a file whose folder does not exist. Called before anything is measured."""
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            raise SetupError(f"{path}: there is no folder {path.parent}; make it first")


def _tell(results: "Results") -> None:
    from run_gpt.cli.progress import console

    lines: Sequence[str] = [f"Warning: {text}" for summary in results.summaries for text in summary.warnings()]
    if (found := results.saturation) is not None:
        print(f"\nSaturated at {found.level}: {found.reason}.")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    shown = {sample.failure: sample.detail for run in results.ordered for sample in run.samples if sample.failure}
    for kind, detail in shown.items():
        console.print(f"{kind}, for example: {detail}", markup=False, soft_wrap=True)


def _write(
    results: "Results", json_file: Path | None, csv_file: Path | None, html: Path | None, png: Path | None
) -> None:
    from run_gpt.bench import html as report
    from run_gpt.bench import plots
    from run_gpt.bench import results as files

    if json_file:
        files.write_json(results, json_file)
    if csv_file:
        files.write_csv(results.summaries, csv_file)
    if html or png:
        drawn = plots.draw(results)
        if html:
            report.write_html(results, drawn, html)
        if png:
            plots.write(drawn, png)


app.command()(model)
