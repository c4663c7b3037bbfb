"""A measured model in a separate process, so that models can take turns and share neither memory nor threads."""

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
"""Time limit for loading, compiling or one measurement."""
SHORT_SECONDS = 1.0
"""Least duration of a call that measures the load of other programs: processor time is counted in hundredths."""


class Process:
    """A loaded variant in a separate process, which is idle between calls. The caller must close it."""

    def __init__(self, variant: "Variant"):
        """Start the process and load the variant. Raises SetupError, with the reason, if loading fails."""
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, variant), daemon=True)
        self._process.start()
        other.close()
        self.others = 0.0
        """Most cores that other programs used during a measurement; 0 if the system does not report it."""
        try:
            self.about: dict[str, Any] = self._reply()
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """True while the process runs and takes calls."""
        return self._process.is_alive()

    def call(self, method: str, **arguments: Any) -> Any:
        """Call a method of the subject and return its result.

        Raises SetupError if it fails, if the process dies, or after LIMIT_SECONDS.
        """
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
    """Load the variant, send its description, then answer calls until the process is ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the benchmark ends this process
    try:
        subject = variant.load()
        connection.send((subject.about(), None, 0.0))
    except Exception as error:  # shown in the variant's row of the table
        connection.send((None, _line(error), 0.0))
        return
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return  # the benchmark has ended
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
    """Return the processor seconds used by all programs of this machine, with those stolen from a virtual machine."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
