"""Owns the layout of a view, on a terminal of any width and as plain text."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from run_gpt.top.view import WELL, ModelRow, Quantiles, ReplicaRow, View
from run_gpt.top.watch import Snapshot

_GAP = 2
_NAME = 20
"""Most characters of a model's name in the row of a replica."""


def render(snapshot: Snapshot, shown: str, width: int) -> RenderableType:
    """Render the view of the server at `shown` for a terminal that is `width` characters wide."""
    notes = [Text(note, style="bold red") for note in snapshot.notes]
    if snapshot.view is None:
        return Group(Text(f"rungpt top  {shown}  waits for a second reading"), *notes)
    view = snapshot.view
    # Replicas come last: a low terminal then cuts off the rows of healthy replicas.
    models: list[RenderableType] = [_table(_MODEL_COLUMNS, view.models, width), Text("")] if view.models else []
    columns = _COLUMNS if view.models else [column for column in _COLUMNS if column[0] != "MODEL"]
    return Group(_header(view, shown), *notes, _totals(view), Text(""), *models, _table(columns, view.replicas, width))


def _header(view: View, shown: str) -> Text:
    text = Text(f"{view.model}  ", style="bold")
    well = view.replicas and all(row.state in WELL for row in view.replicas)
    text.append(f"{view.ready}/{view.total} replicas ready", style="green" if well else "red")
    up = f"  up {duration(view.uptime)}" if view.uptime is not None else ""
    text.append(f"{up}  {shown}  RunGPT {view.version}", style="not bold")
    return text


def _totals(view: View) -> Table:
    """Return a table with one row for each total; long text wraps into the next line."""
    table = Table.grid(padding=(0, _GAP, 0, 0))
    table.add_column(no_wrap=True, style="cyan")
    table.add_column()
    in_flight = "" if view.in_flight is None else f"   in flight {view.in_flight:.0f}"
    reused = "" if view.reused_share is None else f"   reused {view.reused_share:.0%}"
    table.add_row("requests/s", _rates(view.requests) + in_flight)
    table.add_row("finished/s", _rates(view.finished))
    table.add_row("tokens/s", f"prompt {view.prompt_tokens:.1f}   generated {view.generated_tokens:.1f}{reused}")
    table.add_row("first token", _quantiles(view.ttft))
    table.add_row("inter-token", _quantiles(view.inter_token))
    table.add_row("errors", _errors(view))
    return table


def _rates(rates: dict[str, float]) -> str:
    return "   ".join([f"{sum(rates.values()):.1f}", *(f"{name} {rate:.1f}" for name, rate in rates.items())])


def _quantiles(quantiles: Quantiles) -> str:
    return "   ".join(
        f"{name} {_milliseconds(value)} ms" for name, value in zip(("p50", "p90"), quantiles, strict=True)
    )


# Heading, least width in characters, and text of a cell. A narrow terminal shows only the first columns.
_Column = tuple[str, int, Callable[[Any], str]]
_COLUMNS: list[_Column] = [
    ("REPLICA", 15, lambda row: row.address),
    ("STATE", 10, lambda row: row.state),
    ("MODEL", 10, lambda row: _shortened(row.model)),
    ("RUN", 4, lambda row: _number(row.running)),
    ("WAIT", 4, lambda row: _number(row.waiting)),
    ("TOK/S", 7, lambda row: _number(row.tokens_per_second, 1)),
    ("SLOTS", 7, lambda row: f"{_number(row.slots_used)}/{_number(row.slots)}"),
    ("KV %", 5, lambda row: _number(None if row.kv_share is None else row.kv_share * 100, 1)),
    ("STEP MS", 7, lambda row: _milliseconds(row.step_seconds)),
    ("BATCH", 6, lambda row: _number(row.batch, 1)),
    ("RESTARTS", 8, lambda row: str(row.restarts)),
]
_MODEL_COLUMNS: list[_Column] = [
    ("MODEL", 15, lambda row: row.name),
    ("STATE", 11, lambda row: row.state),
    ("RUN", 4, lambda row: _number(row.running)),
    ("WAIT", 4, lambda row: _number(row.waiting)),
    ("TOK/S", 7, lambda row: _number(row.tokens_per_second, 1)),
    ("LOADS", 5, lambda row: str(row.loads)),
    ("FAILED", 6, lambda row: str(row.failed_loads)),
    ("UNLOADS", 7, lambda row: str(row.unloads)),
]
_WORDS = ("REPLICA", "STATE", "MODEL")


def _table(columns: list[_Column], rows: Sequence[ModelRow | ReplicaRow], width: int) -> Table:
    """Return a table of the rows; rows that are not healthy are coloured."""
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="cyan")
    fitting = list(_fitting(columns, rows, width))
    for heading, _, _ in fitting:
        justify: Any = "left" if heading in _WORDS else "right"
        table.add_column(heading, justify=justify, no_wrap=True, overflow="ellipsis")
    for row in rows:
        style = None if row.state in (*WELL, "loaded") else "yellow"
        table.add_row(*(cell(row) for _, _, cell in fitting), style=style)
    return table


def _fitting(columns: list[_Column], rows: Sequence[ModelRow | ReplicaRow], width: int) -> Iterator[_Column]:
    """Yield the columns that fit into the width, at least the first."""
    left = width
    for i, (heading, least, cell) in enumerate(columns):
        needs = max((least, *(len(cell(row)) for row in rows)))
        left -= needs + _GAP
        if left < -_GAP and i:
            return
        yield heading, needs, cell


def _shortened(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _errors(view: View) -> Text:
    """Return each error code with its total and its rate; codes with errors in the interval are red."""
    text = Text("" if view.errors else "none")
    for code, (count, rate) in view.errors.items():
        text.append("   " if text else "")
        text.append(f"{code} {count:.0f} ({rate:.1f}/s)", style="red" if rate else "")
    return text


def duration(seconds: float) -> str:
    """Format a duration in at most two units: `12 s`, `5 min 3 s`, `2 h 5 min`, `3 d 2 h`."""
    whole = int(seconds)
    steps = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    first = next((i for i, (_, size) in enumerate(steps) if whole >= size), len(steps) - 1)
    words: list[str] = []
    for unit, size in steps[first : first + 2]:
        count, whole = divmod(whole, size)
        words += [f"{count} {unit}"] if count or not words else []
    return " ".join(words)


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _milliseconds(seconds: float | None) -> str:
    """Format seconds as milliseconds with three digits: the measurement is no more precise."""
    if seconds is None:
        return "-"
    value = seconds * 1000
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
