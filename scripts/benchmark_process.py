"""A contender of scripts/engine_benchmark.py in a process of its own.

So its memory is its own, and the contenders can take turns: a busy minute of the machine slows all of them.
"""

import multiprocessing
import sys
import time
from multiprocessing.connection import Connection
from typing import Any, cast

import psutil
from benchmark_contenders import Contender
from machine import busy_seconds

from run_gpt.bench.offline_subject import peak_bytes

LIMIT_SECONDS = 900.0
"""Longest time for one measurement."""
SHORT_SECONDS = 1.0
"""Shorter calls do not show the load of other programs: the system counts processor time in hundredths."""
DISTURBING = 0.1
"""Cores. OpenMP's threads wait for the slowest one, so a busy neighbour can slow torch tenfold."""


class Process:
    """A contender in a process of its own, which runs only the calls that it gets."""

    def __init__(self, contender: Contender):
        self.contender = contender
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, contender), daemon=True)
        self._process.start()
        other.close()
        self.name = str(self._reply())
        self.disturbed = 0.0
        """Most cores that other programs used while this one was measured."""

    def call(self, method: str, **arguments: Any) -> dict[str, float]:
        """Call the contender's method. Raises SystemExit if it fails or takes more than LIMIT_SECONDS."""
        start, busy, own = time.perf_counter(), busy_seconds(), self._seconds()
        self._connection.send((method, arguments))
        reply = cast("dict[str, float]", self._reply())
        wall = time.perf_counter() - start
        others = (busy_seconds() - busy - (self._seconds() - own)) / wall
        if wall > SHORT_SECONDS:
            self.disturbed = max(self.disturbed, others)
            if others > DISTURBING:
                print(f"  while {self.name} ran, other programs used {others:.1f} cores", file=sys.stderr, flush=True)
        return reply

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()

    def _seconds(self) -> float:
        """Return the processor time that the contender has used."""
        return float(sum(psutil.Process(self._process.pid).cpu_times()[:2]))

    def _reply(self) -> Any:
        try:
            if not self._connection.poll(LIMIT_SECONDS):
                raise SystemExit(f"{self.contender}: no answer in {LIMIT_SECONDS:.0f} s")
            reply, error = self._connection.recv()
        except EOFError:
            raise SystemExit(f"{self.contender}: its process has died") from None
        if error is not None:
            raise SystemExit(f"{self.contender}: {error}")
        return reply


def _serve(connection: Connection, contender: Contender) -> None:
    """Run a contender's process: send its name, then answer calls."""
    try:
        loaded: Any = contender.load()
        connection.send((loaded.name, None))
        while True:
            method, arguments = connection.recv()
            if method == "memory":
                sizes = {"model": loaded.memory, "peak": peak_bytes()}
                connection.send(({name: size / 1e6 for name, size in sizes.items()}, None))
            else:
                connection.send((getattr(loaded, method)(**arguments), None))
    except EOFError:
        return  # the benchmark has gone
    except Exception as error:
        connection.send((None, f"{type(error).__name__}: {error}"))
