"""Progress bars on stderr for the long steps of other rooms."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from run_gpt.models import OnProgress

console = Console(stderr=True, highlight=False)


@contextmanager
def progress_bars() -> Iterator[OnProgress]:
    """A callback that draws a bar for each step: a spinner where the total is not known."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def show(step: str, done: int, total: int | None) -> None:
            if step not in tasks:
                if not console.is_terminal:
                    console.print(f"{step} ...")
                tasks[step] = progress.add_task(step, total=total)
            progress.update(tasks[step], completed=done, total=total)

        yield show
