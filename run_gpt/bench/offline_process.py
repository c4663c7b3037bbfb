"""A model that is measured, in a process of its own: its memory and threads are its own, and models take turns."""

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from run_gpt.errors import RunGPTError, SetupError

if TYPE_CHECKING:
    from run_gpt.bench.offline_subject import Variant

LIMIT_SECONDS = 900.0
"""Longest that loading, compiling or one measurement may take."""
SHORT_SECONDS = 1.0
"""A shorter call says little of what others do: the system counts processor time in hundredths."""


class Process:
    """A loaded variant in a process of its own, which does nothing unless it is asked. Close it."""

    def __init__(self, variant: "Variant"):
        """Raises SetupError, with the reason, if the variant cannot be loaded."""
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, variant), daemon=True)
        self._process.start()
        other.close()
        self.others = 0.0
        """Cores that other programs used while this one was measured, at worst; 0 where the system does not say."""
        try:
            self.about: dict[str, Any] = self._reply()
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether it can be asked more."""
        return self._process.is_alive()

    def call(self, method: str, **arguments: Any) -> Any:
        """What the subject's method returns. Raises SetupError if it fails, dies or takes longer than LIMIT_SECONDS."""
        try:
            self._connection.send((method, arguments))
        except OSError:
            raise self._ended() from None
        return self._reply()

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()

    def _reply(self) -> Any:
        try:
            if not self._connection.poll(LIMIT_SECONDS):
                self.close()
                raise SetupError(f"no answer in {LIMIT_SECONDS:.0f} s")
            reply, error, others = self._connection.recv()
        except (EOFError, ConnectionError):
            raise self._ended() from None
        self.others = max(self.others, others)
        if error is not None:
            raise SetupError(error)
        return reply

    def _ended(self) -> SetupError:
        self._process.join()
        return SetupError(f"its process ended with code {self._process.exitcode} (-9: out of memory)")


def _serve(connection: Connection, variant: "Variant") -> None:
    """The life of the process: loads, says what it is, then answers calls until it is ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the benchmark, which ends this process
    try:
        subject = variant.load()
        connection.send((subject.about(), None, 0.0))
    except Exception as error:  # the table says it in the variant's row
        connection.send((None, _line(error), 0.0))
        return
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return  # the benchmark has gone
        start, busy, own = time.perf_counter(), _busy_seconds(), time.process_time()
        try:
            reply = getattr(subject, method)(**arguments)
        except Exception as error:  # as above
            connection.send((None, _line(error), 0.0))
            continue
        wall = time.perf_counter() - start
        others = (_busy_seconds() - busy - (time.process_time() - own)) / wall
        connection.send((reply, None, others if wall > SHORT_SECONDS and method == "measure" else 0.0))


def _line(error: Exception) -> str:
    if isinstance(error, RunGPTError):
        return error.message
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _busy_seconds() -> float:
    """Processor time that all programs of this machine have used, and what others took from a virtual one."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
