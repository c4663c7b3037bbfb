"""Progress bars on stderr for long steps of other packages; without a terminal, one line for each step."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from run_gpt.models import OnProgress

console = Console(stderr=True, highlight=False)


@contextmanager
def progress_bars() -> Iterator[OnProgress]:
    """Yield a callback that shows each step: with a bar, or with a spinner if the total is not known."""
    tasks: dict[str, TaskID] = {}
    if not console.is_terminal:

        def report(step: str, done: int, total: int | None) -> None:
            if step not in tasks:
                tasks[step] = TaskID(len(tasks))
                console.print(f"{step} ...", markup=False, soft_wrap=True)

        yield report
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:

        def draw(step: str, done: int, total: int | None) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(step, total=total)
            progress.update(tasks[step], completed=done, total=total)

        yield draw
