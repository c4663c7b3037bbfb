"""Owns the ways in which a pod ends beside the orderly one: by a signal while it loads, or without its supervisor."""

import os
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Those that end a pod."""
_ORPHAN_SECONDS = 5.0


def end_on_signals() -> None:
    """From now on SIGNALS end the process at once; by default they do not where it is the first one of a container."""
    for number in SIGNALS:
        signal.signal(number, end_now)


def end_now(signum: int, frame: FrameType | None = None) -> NoReturn:
    """Ends the process, and what it has started in its group, as this signal does by default."""
    if os.getpgrp() == os.getpid():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(os.getpid(), signal.SIGTERM)
    os._exit(128 + signum)


def end_with_parent() -> None:
    """Waits for the end of stdin. Then a normal stop; whatever hangs in it, nothing outlives the grace time."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_ORPHAN_SECONDS)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def leave(code: int) -> NoReturn:
    """Ends the process without waiting for threads that libraries have left behind."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
