"""Owns the ways in which a pod ends without the orderly stop: by a signal while it loads, or without its supervisor."""

import os
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Signals that end a pod."""
_ORPHAN_SECONDS = 5.0


def end_on_signals() -> None:
    """Let SIGNALS end the process at once from now on; by default they do not end the first process of a container."""
    for number in SIGNALS:
        signal.signal(number, end_now)


def end_now(signum: int, frame: FrameType | None = None) -> NoReturn:
    """End the process and its process group, as this signal does by default."""
    if os.getpgrp() == os.getpid():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(os.getpid(), signal.SIGTERM)
    os._exit(128 + signum)


def end_with_parent() -> None:
    """Wait for the end of stdin, then stop normally. If the stop hangs, kill the process group after a grace time."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_ORPHAN_SECONDS)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def leave(code: int) -> NoReturn:
    """End the process without waiting for threads that libraries have left behind."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
