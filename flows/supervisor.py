"""Owns a Flow's processes: starts them, restarts those that die, and ends all of them in the right order.

It imports neither jina nor torch: it must start at once, cost nothing, and survive any failure in a process.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Literal

from run_gpt.errors import SetupError
from run_gpt.flows.backoff import Backoff
from run_gpt.flows.heartbeat import LOOK_SECONDS
from run_gpt.flows.process import PodProcess, PodSpec
from run_gpt.process import logs
from run_gpt.process.log_queue import LogQueue

EventKind = Literal["starting", "pod_ready", "ready", "died", "output", "stopping", "killed", "stopped", "warning"]

_POLL_SECONDS = 0.05
_TICK_SECONDS = 0.5
"""Longest wait: a signal that comes just before a wait is handled after it."""
_START_ATTEMPTS = 3
_UNREADY_STOP_SECONDS = 1.0


@dataclass(frozen=True)
class Event:
    """Event to report to the user. `message` is one line; `pod` names the process that it is about, if any."""

    kind: EventKind
    message: str
    pod: str | None = None


OnEvent = Callable[[Event], None]
"""Function that takes an event. It is called from one thread, which may wait for it; the processes do not."""

_LAST_EVENTS_SECONDS = 1.0
"""Time for the events that are not reported yet when all processes have ended."""


def print_event(event: Event) -> None:
    """Write the event to stderr; the output of a process is prefixed with its name."""
    _print(f"[{event.pod}] {event.message}" if event.kind == "output" else event.message)


def print_json(event: Event) -> None:
    """Write the event to stderr as a JSON object; an object that a process has written is not changed."""
    if event.kind == "output":
        _print(logs.as_json(event.message, event.pod))
        return
    level = "WARNING" if event.kind in ("died", "killed", "warning") else "INFO"
    _print(logs.json_line(event.message, logger=__name__, level=level, pod=event.pod, event=event.kind))


def printer(log_format: str) -> OnEvent:
    """Return the function that writes events in one of LOG_FORMATS."""
    return print_json if log_format == "json" else print_event


def _print(line: str) -> None:
    logs.write_line(line, sys.stderr)


class _Child:
    """Slot for one process: the process that runs in it now, if any, and the time of its next start."""

    def __init__(self, spec: PodSpec, backoff: Backoff):
        self.spec = spec
        self.backoff = backoff
        self.process: PodProcess | None = None
        self.ready_at: float | None = None
        self.restart_at: float | None = None
        self.failed_starts = 0

    @property
    def is_loading(self) -> bool:
        return self.process is not None and self.ready_at is None

    @property
    def stop_seconds(self) -> float:
        """Seconds that it may take to stop: a process that does not serve yet has nothing to finish."""
        return min(_UNREADY_STOP_SECONDS, self.spec.stop_seconds) if self.is_loading else self.spec.stop_seconds


class Supervisor:
    """Supervisor of one gateway and its workers, until a stop is requested.

    `run` blocks, in any thread; `request_stop` and `kill` may be called from any thread and from a signal handler.
    """

    def __init__(
        self,
        gateway: PodSpec,
        workers: Sequence[PodSpec],
        on_event: OnEvent = print_event,
        *,
        on_ready: Callable[[], None] = lambda: None,
        new_backoff: Callable[[], Backoff] = Backoff,
    ):
        """Prepare the processes. `on_ready` is called once, when all serve; it must not wait for `on_event`."""
        self._gateway = _Child(gateway, new_backoff())
        self._workers = [_Child(spec, new_backoff()) for spec in workers]
        self._children = [*self._workers, self._gateway]
        self._reports = LogQueue(on_event, lambda lines: Event("warning", f"{lines} lines of the log were lost"))
        self._on_ready = on_ready
        self._inbox: SimpleQueue[PodProcess | None] = SimpleQueue()
        self._look_at = 0.0
        self._stop_requested = False
        self._kill_requested = False
        self._serving = False

    def run(self) -> None:
        """Start all processes, keep them alive, and return after `request_stop` when every process has ended.

        Until all processes have been ready, raises the error of a process that reports why it cannot start, or
        SetupError for one that ended three times before it was ready; then every process has ended too. A process that
        was ready is restarted without a limit: requests of other models may be running by then.
        """
        try:
            for child in self._children:
                self._start(child)
            while not self._stop_requested:
                self._note_ready()
                self._end_hung()
                self._wait()
                self._start_due()
        finally:
            try:
                self._shut_down()
            finally:
                self._kill_all()
                self._reports.close(_LAST_EVENTS_SECONDS)

    def request_stop(self) -> None:
        """Begin the orderly stop: the gateway drains, then the workers end."""
        self._stop_requested = True
        self._inbox.put(None)

    def kill(self) -> None:
        """End every process at once."""
        self._kill_requested = True
        self.request_stop()

    def pids(self) -> dict[str, int]:
        """Return the ids of the running processes, by name."""
        processes = [(child.spec.name, child.process) for child in self._children]
        return {name: process.pid for name, process in processes if process is not None}

    def _report(self, kind: EventKind, message: str, child: _Child | None = None) -> None:
        self._reports.put(Event(kind, message, child.spec.name if child else None), len(message))

    def warn(self, message: str) -> None:
        """Report a warning."""
        self._report("warning", message)

    def finish_reports(self, seconds: float) -> None:
        """Wait until the events so far are reported, for `seconds` at most."""
        self._reports.finish(seconds)

    def _start(self, child: _Child) -> None:
        name = child.spec.name
        self._report("starting", f"starting {name}", child)
        child.restart_at = None
        child.process = PodProcess(
            child.spec,
            on_line=lambda line: self._reports.put(Event("output", line, name), len(line)),
            on_exit=self._inbox.put,
            has_room=self._reports.wait_for_room,
        )

    def _note_ready(self) -> None:
        """Check the loading processes; a gateway is never ready before a worker is."""
        loading = [child for child in self._children if child.is_loading]
        for child in loading:
            if child is self._gateway and not any(worker.ready_at for worker in self._workers):
                continue
            if child.spec.is_ready():
                child.ready_at = time.monotonic()
                self._report("pod_ready", f"{child.spec.name} is ready", child)
        if not self._serving and all(child.ready_at for child in self._children):
            self._serving = True
            self._report("ready", "ready")
            self._on_ready()

    def _end_hung(self) -> None:
        """End the processes that hang, about once a second; they are started again like those that die."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_SECONDS
        for child in self._children:
            if child.process is not None and (why := child.process.hangs()):
                self._report("killed", f"{child.spec.name} hangs, {why}: it is killed", child)
                child.process.kill()

    def _wait(self) -> None:
        """Wait until a process dies, or a restart, a check of a process or a stop is due."""
        wake_at = [child.restart_at for child in self._children if child.restart_at is not None]
        wake_at.append(self._look_at)
        if any(child.is_loading for child in self._children):
            wake_at.append(time.monotonic() + _POLL_SECONDS)
        dead = self._next_dead(min(wake_at, default=None))
        if dead is not None and not self._stop_requested:
            self._plan_restart(*dead)

    def _next_dead(self, until: float | None) -> tuple[_Child, PodProcess] | None:
        """Remove the next process that has ended from its slot and return both; None at the time limit or a wake-up."""
        seconds = _TICK_SECONDS if until is None else until - time.monotonic()
        try:
            process = self._inbox.get(timeout=max(0.0, min(seconds, _TICK_SECONDS)))
        except Empty:
            return None
        for child in self._children:
            if process is not None and child.process is process:
                child.process = None
                process.close()
                return child, process
        return None

    def _plan_restart(self, child: _Child, process: PodProcess) -> None:
        if not self._serving and child.ready_at is None:
            self._judge_failed_start(child, process)
        now = time.monotonic()
        delay = child.backoff.next_delay(now - child.ready_at if child.ready_at else 0.0)
        child.ready_at, child.restart_at = None, now + delay
        reason = f": {process.error.message}" if process.error else ""
        message = f"{child.spec.name} ended ({process.exit_text}){reason}; starting it again in {delay:g} s"
        self._report("died", message, child)

    def _judge_failed_start(self, child: _Child, process: PodProcess) -> None:
        if process.error is not None:
            raise process.error
        child.failed_starts += 1
        if child.failed_starts >= _START_ATTEMPTS:
            words = f": {process.last_line}" if process.last_line else ""
            raise SetupError(f"{child.spec.name} ended {_START_ATTEMPTS} times at start ({process.exit_text}){words}")

    def _start_due(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if child.restart_at is not None and child.restart_at <= now and not self._stop_requested:
                self._start(child)

    def _shut_down(self) -> None:
        """Stop the gateway first, which lets running requests finish; the workers serve until it has ended."""
        self._report("stopping", "stopping")
        if self._gateway.ready_at:
            self._stop([self._gateway])
        self._stop(self._children)
        self._report("stopped", "stopped")

    def _stop(self, children: Sequence[_Child]) -> None:
        deadlines = {child: time.monotonic() + child.stop_seconds for child in children}
        for child in children:
            if child.process is not None:
                child.process.terminate()
        while running := [child for child in children if child.process is not None]:
            for child in running:
                if self._kill_requested or time.monotonic() >= deadlines[child]:
                    self._kill(child)
                    deadlines[child] = time.monotonic() + 1.0
            self._next_dead(min(deadlines[child] for child in running))

    def _kill(self, child: _Child) -> None:
        if child.process is None:
            return
        if not child.is_loading:
            self._report("killed", f"{child.spec.name} is killed: it did not end in time", child)
        child.process.kill()

    def _kill_all(self) -> None:
        """Kill all processes, so that none stays behind after an error."""
        for child in self._children:
            if child.process is not None:
                child.process.kill()
