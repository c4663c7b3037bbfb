"""Progress of a benchmark on stderr: a live line on a terminal, otherwise one line for each load."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from run_gpt.bench.load import OnProgress, Run
from run_gpt.cli.progress import console

_EVERY = 0.3  # seconds between two updates: drawing takes processor time from the client


@contextmanager
def load_progress(requests: int) -> Iterator[OnProgress]:
    """Yield the callback that a benchmark calls each time a request begins or ends."""
    if not console.is_terminal:
        seen: list[Run] = []

        def report(run: Run) -> None:
            if not seen or seen[-1] is not run:
                seen.append(run)
                console.print(f"{run.level} ...", markup=False)

        yield report
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, refresh_per_second=3) as progress:
        task, drawn = None, 0.0
        current: Run | None = None

        def draw(run: Run) -> None:
            nonlocal task, drawn, current
            if run is not current:
                current, task = run, progress.add_task(str(run.level), total=requests, now="")
            done = len(run.samples)
            if task is not None and (time.monotonic() - drawn > _EVERY or not run.in_flight):
                drawn = time.monotonic()
                progress.update(task, completed=done, now=_now(run))

        yield draw


def _now(run: Run) -> str:
    done = max((sample.end for sample in run.samples), default=0.0)
    tokens = sum(sample.tokens for sample in run.samples)
    failed = sum(not sample.ok for sample in run.samples)
    return f"{run.in_flight} in flight, {failed} failed, {tokens / done if done else 0:,.0f} tok/s"
