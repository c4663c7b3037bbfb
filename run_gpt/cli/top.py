"""`rungpt top`: live view of a running server in the terminal."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from run_gpt.cli import options
from run_gpt.config import LOOPBACK, ServeConfig
from run_gpt.errors import SetupError

if TYPE_CHECKING:
    from run_gpt.top.watch import Watch

PLAIN_WIDTH = 120
"""Width of plain text in characters: wide enough for every column, independent of the terminal."""


def top(
    url: Annotated[str, typer.Option(help="URL of the server (HTTP).")] = f"http://{LOOPBACK}:{ServeConfig.http_port}",
    api_key: options.ApiKey = None,
    interval: Annotated[float, typer.Option(help="Seconds between two updates.", min=0.1)] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one interval as plain text, for scripts.")] = False,
) -> None:
    """Watch a running server: load, rates and latencies of the last interval. q or Ctrl-C ends it."""
    from run_gpt.client.trust import given_ca, http_trust
    from run_gpt.top.reading import Source
    from run_gpt.top.watch import Watch

    if not once and not sys.stdout.isatty():
        raise SetupError("rungpt top: stdout is no terminal; for one look as plain text give --once")
    source = Source(url, options.token(api_key), http_trust(url.startswith("https:"), given_ca()))
    with closing(source):
        watch = Watch(source)
        watch.start()
        (_print_once if once else _live)(watch, source.shown, interval)


def _print_once(watch: "Watch", shown: str, interval: float) -> None:
    from rich.console import Console

    from run_gpt.top.screen import render

    time.sleep(interval)  # rates need two readings
    seen = watch.poll()
    if seen.view is None:
        raise SetupError(seen.notes[0])
    console = Console(width=PLAIN_WIDTH, color_system=None, highlight=False, markup=False, emoji=False)
    console.print(render(seen, shown, PLAIN_WIDTH))


def _live(watch: "Watch", shown: str, interval: float) -> None:
    from rich.console import Console
    from rich.live import Live

    from run_gpt.top.screen import render
    from run_gpt.top.watch import Snapshot

    console = Console(highlight=False, markup=False, emoji=False)
    # Redraw only after a new reading.
    with suppress(KeyboardInterrupt), _keys() as ended, Live(console=console, screen=True, auto_refresh=False) as live:
        live.update(render(Snapshot(None, []), shown, console.width), refresh=True)
        while not ended(interval):
            live.update(render(watch.poll(), shown, console.width), refresh=True)


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Yield a function that waits for some seconds and returns True once q is typed.

    Without a keyboard only Ctrl-C ends the program.
    """
    if not sys.stdin.isatty():
        yield _sleep
        return
    import termios
    import tty

    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard)
        yield lambda seconds: _typed_q(keyboard, seconds)
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _typed_q(keyboard: int, seconds: float) -> bool:
    import os
    import select

    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([keyboard], [], [], left)[0]:
            typed = os.read(keyboard, 64)
            if not typed or b"q" in typed.lower():  # an empty read: the terminal is gone
                return True
    return False
