"""Owns one child process: its start, its output, its end and the end of all processes that it has started."""

import json
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import run_gpt.errors
from run_gpt.errors import RunGPTError, SetupError
from run_gpt.flows.heartbeat import PIPE_VARIABLE, Pulse
from run_gpt.process import logs

SETUP_ERROR_MARK = "rungpt-setup-error "
"""Start of the line in which a pod reports why it cannot start, as JSON `{"type", "message"}`."""
SETUP_ERROR_EXIT = 78
"""Exit code of such a pod (EX_CONFIG)."""

_LINES_KEPT = 30
_LONGEST_LINE = 64 * 1024
"""Characters after which a line of a process is cut in two."""
_ROOM_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class PodSpec:
    """Specification of one process of the Flow: its command, and the check that it serves."""

    name: str
    """Name for users: `gateway`, `worker 0`, `worker 1 (tiny)`."""
    role: Literal["worker", "gateway"]
    command: tuple[str, ...]
    is_ready: Callable[[], bool]
    """Check that is called often while the process starts; returns within a second."""
    stdin: str = ""
    """Line for the process to read. Its stdin then stays open for as long as this program lives."""
    env: Mapping[str, str | None] = field(default_factory=dict, repr=False)
    """Variables that are added to this program's environment; None removes a variable."""
    stop_seconds: float = 5.0
    """Seconds from SIGTERM to SIGKILL."""


class PodProcess:
    """Running child process, leader of its own session so that Ctrl-C in a terminal does not reach it.

    `on_line(line)` gets its output, both streams; `on_exit(process)` is called once, when the process is reaped and
    the rest of its process group is killed. Both are called from threads of this object. `has_room(seconds)` waits
    until a line can be taken: while it returns False the output is not read, so that the process itself drops its
    lines, and counts them. The rest of the output of a process that has ended is read in any case.
    Raises SetupError if the command cannot be started at all.
    """

    def __init__(
        self,
        spec: PodSpec,
        on_line: Callable[[str], None],
        on_exit: Callable[["PodProcess"], None],
        has_room: Callable[[float], bool] = lambda seconds: True,
    ):
        self.spec = spec
        self._has_room = has_room
        self.error: RunGPTError | None = None
        """Error with which the process could not start, as the process reported it."""
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._pulse = Pulse()
        self._popen = _spawn(spec, self._pulse)
        self._output = threading.Thread(target=self._read_output, args=(on_line,), daemon=True)
        self._output.start()
        threading.Thread(target=self._wait, args=(on_exit,), daemon=True).start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_text(self) -> str:
        """End of the process, such as `exit code 1` or `SIGKILL`."""
        return _exit_text(self._popen.returncode)

    @property
    def last_line(self) -> str:
        """Text of the last line that it has written, or an empty string."""
        return logs.text_of(self._lines[-1]) if self._lines else ""

    def hangs(self) -> str | None:
        """Look whether the process goes on, about once a second; return why it hangs, or None."""
        return self._pulse.problem(self.pid)

    def close(self) -> None:
        """Free what is left of it after its end. The thread that calls `hangs` calls this."""
        self._pulse.close()

    def terminate(self) -> None:
        """Ask the process to stop."""
        self._popen.terminate()

    def kill(self) -> None:
        """End the process and everything in its group, now."""
        if self._popen.poll() is None:
            _kill_group(self.pid)
            self._popen.kill()

    def _read_output(self, on_line: Callable[[str], None]) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as stdout:
            while raw := stdout.readline(_LONGEST_LINE):
                line = raw.rstrip()
                if line.startswith(SETUP_ERROR_MARK):
                    self.error = _parse_error(line.removeprefix(SETUP_ERROR_MARK))
                elif line:
                    self._lines.append(line)
                    while not self._has_room(_ROOM_SECONDS) and self._popen.returncode is None:
                        pass
                    on_line(line)

    def _wait(self, on_exit: Callable[["PodProcess"], None]) -> None:
        self._popen.wait()
        _kill_group(self.pid)
        self._output.join(timeout=2.0)  # for its last output; another process may hold the pipe open for longer
        if self._popen.stdin is not None:
            self._popen.stdin.close()
        on_exit(self)


def write_setup_error(error: RunGPTError) -> str:
    """Return the line by which a pod passes its supervisor the error that keeps it from starting."""
    return SETUP_ERROR_MARK + json.dumps({"type": type(error).__name__, "message": error.message})


def _parse_error(text: str) -> RunGPTError:
    try:
        fields = json.loads(text)
        cls, message = getattr(run_gpt.errors, fields["type"], SetupError), str(fields["message"])
    except (ValueError, KeyError, TypeError):
        return SetupError(text)
    return cls(message) if isinstance(cls, type) and issubclass(cls, RunGPTError) else SetupError(message)


def _spawn(spec: PodSpec, pulse: Pulse) -> subprocess.Popen[str]:
    try:
        popen = subprocess.Popen(
            spec.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(spec, pulse),
            pass_fds=(pulse.write,),
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        pulse.close()
        raise SetupError(f"cannot start {spec.name}: {error.strerror or error}") from error
    finally:
        pulse.started()
    assert popen.stdin is not None
    try:
        popen.stdin.write(spec.stdin + "\n")
        popen.stdin.flush()
    except BrokenPipeError:
        pass  # it died at once; its exit is reported like any other
    return popen


def _environment(spec: PodSpec, pulse: Pulse) -> dict[str, str]:
    ours = {logs.POD_VARIABLE: spec.name, PIPE_VARIABLE: str(pulse.write)}
    return {name: value for name, value in {**os.environ, **ours, **spec.env}.items() if value is not None}


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # no process is left (macOS: only a zombie)
        return


def _exit_text(returncode: int) -> str:
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"
