"""Owns how a view looks on a terminal of any width, and as plain text."""

from collections.abc import Callable, Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from run_gpt.top.view import Quantiles, ReplicaRow, View
from run_gpt.top.watch import Seen

_GAP = 2


def render(seen: Seen, shown: str, width: int) -> RenderableType:
    """What is seen of the server at `shown`, for a terminal with so many columns."""
    notes = [Text(note, style="bold red") for note in seen.notes]
    if seen.view is None:
        return Group(Text(f"rungpt top  {shown}  waits for a second reading"), *notes)
    view = seen.view
    # Replicas stand last: what a low terminal cuts off is the rows of those that are well.
    return Group(_header(view, shown), *notes, _totals(view), Text(""), _replicas(view.replicas, width))


def _header(view: View, shown: str) -> Text:
    text = Text(f"{view.model}  ", style="bold")
    style = "green" if view.ready == view.total and view.total else "red"
    text.append(f"{view.ready}/{view.total} replicas ready", style=style)
    up = f"  up {duration(view.uptime)}" if view.uptime is not None else ""
    text.append(f"{up}  {shown}  RunGPT {view.version}", style="not bold")
    return text


def _totals(view: View) -> Table:
    """A line for each total; what does not fit goes on in the next line."""
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


# Heading, columns that it takes, what stands in it; the first are those that a narrow terminal shows.
_COLUMNS: list[tuple[str, int, Callable[[ReplicaRow], str]]] = [
    ("REPLICA", 15, lambda row: row.address),
    ("STATE", 10, lambda row: row.state),
    ("RUN", 4, lambda row: _number(row.running)),
    ("WAIT", 4, lambda row: _number(row.waiting)),
    ("TOK/S", 7, lambda row: _number(row.tokens_per_second, 1)),
    ("SLOTS", 7, lambda row: f"{_number(row.slots_used)}/{_number(row.slots)}"),
    ("KV %", 5, lambda row: _number(None if row.kv_share is None else row.kv_share * 100, 1)),
    ("STEP MS", 7, lambda row: _milliseconds(row.step_seconds)),
    ("BATCH", 6, lambda row: _number(row.batch, 1)),
    ("RESTARTS", 8, lambda row: str(row.restarts)),
]


def _replicas(rows: list[ReplicaRow], width: int) -> Table:
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="cyan")
    longest = max((len(row.address) for row in rows), default=0)
    columns = list(_fitting(width, longest))
    for heading, _, _ in columns:
        left = heading in ("REPLICA", "STATE")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True, overflow="ellipsis")
    for row in rows:
        style = None if row.state == "ready" else "yellow"
        table.add_row(*(cell(row) for _, _, cell in columns), style=style)
    return table


def _fitting(width: int, longest: int) -> Iterator[tuple[str, int, Callable[[ReplicaRow], str]]]:
    """The columns that fit, at least the first; an address may take what a terminal of 80 columns leaves of it."""
    left = width
    for heading, needs, cell in _COLUMNS:
        needs = max(needs, longest) if heading == "REPLICA" else needs
        left -= needs + _GAP
        if left < -_GAP and heading != "REPLICA":
            return
        yield heading, needs, cell


def _errors(view: View) -> Text:
    """Each code with all its errors, and in red those of the interval."""
    text = Text("" if view.errors else "none")
    for code, (count, rate) in view.errors.items():
        text.append("   " if text else "")
        text.append(f"{code} {count:.0f} ({rate:.1f}/s)", style="red" if rate else "")
    return text


def duration(seconds: float) -> str:
    """Two units at most: `12 s`, `5 min 3 s`, `2 h 5 min`, `3 d 2 h`."""
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
    """Three digits: no more is known."""
    if seconds is None:
        return "-"
    value = seconds * 1000
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
