"""`rungpt bench model`: speed, memory and perplexity of a model in each precision, without a server."""

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from run_gpt.bench.offline import ALL_PRECISIONS, Options, measure
from run_gpt.bench.offline_texts import TEXTS
from run_gpt.config import DEFAULT_MODEL, Precision
from run_gpt.errors import SetupError

if TYPE_CHECKING:
    from run_gpt.bench.offline_table import Table

NONE = "none"


def _joined(values: tuple[object, ...]) -> str:
    return ",".join(map(str, values))


def model(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="As `rungpt serve` takes it.")] = DEFAULT_MODEL,
    precision: Annotated[str, typer.Option(help="Precisions, with commas.")] = _joined(ALL_PRECISIONS),
    compile: Annotated[
        str, typer.Option(help="Precisions with two rows more: the generic runner, without and with torch.compile.")
    ] = "",
    generate: Annotated[
        str, typer.Option(help="Precisions in which transformers' own `generate` is measured beside it.")
    ] = "",
    prompt_tokens: Annotated[str, typer.Option(help="Lengths of prompts.")] = _joined(Options.prompt_tokens),
    new_tokens: Annotated[int, typer.Option(help="New tokens of each stream.")] = Options.new_tokens,
    batch: Annotated[str, typer.Option(help="Numbers of streams at once.")] = _joined(Options.batches),
    repeat: Annotated[int, typer.Option(help="Rounds that count.")] = Options.repeat,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: a GPU if there is one.")] = None,
    one_by_one: Annotated[bool, typer.Option("--one-by-one", help="Load one variant at a time: less memory.")] = False,
    data: Annotated[
        str, typer.Option(help=f"Texts from the network for perplexity: {', '.join(TEXTS)}, with commas, or {NONE}.")
    ] = _joined(Options.data),
    text: Annotated[list[Path] | None, typer.Option(help="A file for perplexity; several times.")] = None,
    window: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a window; default: 1024, or the context if shorter.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Tokens between two windows; default: half of a window.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of each text that are taken; 0: all.")] = Options.max_tokens,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every round's figures there.")] = None,
    write: Annotated[
        Path | None, typer.Option(help="A Markdown document in which the tables are put between their marks.")
    ] = None,
) -> None:
    """Measure a model in this machine's memory: prefill, decode, memory and perplexity, in each precision."""
    options = Options(
        model=name,
        precisions=_precisions(precision),
        compile=_precisions(compile),
        generate=_precisions(generate),
        prompt_tokens=_numbers("--prompt-tokens", prompt_tokens),
        new_tokens=new_tokens,
        batches=_numbers("--batch", batch),
        repeat=repeat,
        device=device,
        one_by_one=one_by_one,
        data=() if data == NONE else _names(data),
        texts=tuple(text or ()),
        window=window,
        stride=stride,
        max_tokens=max_tokens,
    )
    _run(options, markdown, json_file, write)


def _run(options: Options, markdown: bool, json_file: Path | None, write: Path | None) -> None:
    """Measure, then print the results and write them to the files."""
    from run_gpt.bench import document, offline_table

    if write is not None:
        document.MODEL.check(write)  # fail before the measurement, which takes minutes
    if json_file is not None and not json_file.parent.is_dir():
        raise SetupError(f"--json {json_file}: there is no folder {json_file.parent}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # SystemExit also ends the child processes
    report = measure(options, lambda line: print(line, file=sys.stderr, flush=True))
    if json_file is not None:
        json_file.write_text(json.dumps(offline_table.record(report), indent=2, default=str) + "\n")
    if write is not None:
        document.MODEL.write(write, offline_table.markdown(report))
    if markdown:
        print(offline_table.markdown(report))
    else:
        _print_tables(offline_table.tables(report), offline_table.footer(report))
    if not any(result.rounds for result in report.results):
        raise SetupError("nothing could be measured: the table says why")


def _print_tables(tables: "list[Table]", footer: str) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(highlight=False)
    for made in tables:
        table = RichTable(*made.head, title=made.title, title_justify="left", box=None, pad_edge=False)
        for cells in made.rows:
            table.add_row(*cells)
        console.print(table, "")
    console.print(footer, markup=False)


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _precisions(text: str) -> tuple[Precision, ...]:
    return cast("tuple[Precision, ...]", _names(text))  # Options checks them


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    parts = _names(text)
    if not parts or not all(part.isdecimal() for part in parts):
        raise SetupError(f"{flag} {text}: write numbers with commas between them, such as 128,512")
    return tuple(int(part) for part in parts)
