"""Owns the ways in which a pod ends without the orderly stop: by a signal while it loads, or without its supervisor."""

import os
import signal
import time
from types import FrameType
from typing import NoReturn

from run_gpt.process import logs

SIGNALS = (
    *(signal.SIGINT, signal.SIGTERM),
    *((signal.SIGHUP,) if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else ()),  # nohup asks for that
)
"""Signals that end a pod: SIGHUP is that of a closed terminal."""
STOP_MARGIN = 12.0
"""Seconds that the gateway gets after its drain time, to close its two ports, before it is killed."""


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


def end_with_parent(seconds: float) -> None:
    """Wait for the end of stdin, then stop normally. If the stop hangs, kill the process group after `seconds`."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(seconds)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def leave(code: int) -> NoReturn:
    """End the process without waiting for threads that libraries have left behind."""
    logs.finish()
    os._exit(code)
