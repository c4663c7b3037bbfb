"""Logs of the server's processes: plain lines, or one JSON object in each line.

No process waits for its log or depends on it: stdout and stderr are queues (`log_queue`), in both formats.
"""

import atexit
import io
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO, cast

from run_gpt.config import LOG_FORMAT_VARIABLE, LOG_FORMATS
from run_gpt.errors import SetupError
from run_gpt.process import request_ids
from run_gpt.process.log_queue import LogQueue
from run_gpt.process.log_stream import LogStream, queue_of, release_libraries, same_file

POD_VARIABLE = "RUNGPT_POD"
"""Environment variable with the name that the supervisor gave to this process; child processes inherit it."""
MOST_TEXT = 4000
"""Largest number of characters of a message, and of a traceback, which keeps its last ones."""
FINISH_SECONDS = 1.0
"""Time that a process gives its last lines, at its end, to be written."""
_COLOURS = re.compile(r"\x1b\[.*?[@-~]")

log = logging.getLogger(__name__)
_queues: list[LogQueue[bytes]] = []


def check_format(log_format: str, where: str) -> str:
    """Return the format. Raises SetupError, with `where` it was set, if the format is unknown."""
    if log_format not in LOG_FORMATS:
        raise SetupError(f"{where} {log_format}: give one of {', '.join(LOG_FORMATS)}")
    return log_format


def begin(pod: str) -> None:
    """Set this process, a pod, to the log format that the environment names. Call it before jina is imported.

    `pod` is the name of the process if the environment gives none. Raises SetupError for an unknown format.
    """
    log_format = check_format(os.environ.get(LOG_FORMAT_VARIABLE) or "text", f"{LOG_FORMAT_VARIABLE}:")
    for fd in (1, 2):
        release_libraries(fd)
    if log_format == "json":
        begin_json(os.environ.setdefault(POD_VARIABLE, pod))
    else:
        begin_text()


def is_json() -> bool:
    """Return True if this process writes JSON."""
    return isinstance(sys.stderr, JsonStream)


def begin_text() -> None:
    """Queue every line of this process from now on; call it once. Lines that do not fit are counted, and reported."""
    _begin_queues(lambda lines: f"{lines} lines of this log were lost: it was not written as fast as they came")


def dropped_lines() -> int:
    """Return the number of lines of this process that its log did not take."""
    return sum(queue.dropped for queue in _queues)


def finish() -> None:
    """Wait until the lines so far are written, for FINISH_SECONDS at most."""
    until = time.monotonic() + FINISH_SECONDS
    with suppress(KeyboardInterrupt):  # a Ctrl-C is an end without the wait
        for queue in _queues:
            queue.finish(until - time.monotonic())


def begin_json(pod: str | None) -> None:
    """Make every line of this process a JSON object from now on: log lines, warnings and printed lines.

    The lines are queued as those of `begin_text`. Lines that a C library writes by itself are the only exception.
    """
    _begin_queues(lambda lines: json_line("lines were lost", logger=__name__, level="WARNING", pod=pod, lines=lines))
    handler = logging.StreamHandler(_beneath(sys.stderr))
    handler.setFormatter(JsonFormatter(pod))
    logging.getLogger().addHandler(handler)
    # Jina's loggers do not propagate. So they get no handlers: then logging.lastResort handles their records.
    os.environ["JINA_LOG_CONFIG"] = "QUIET"
    os.environ.setdefault("JINA_LOG_LEVEL", "WARNING")
    logging.lastResort = handler
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    for name in ("stdout", "stderr"):
        setattr(sys, name, JsonStream(_beneath(getattr(sys, name)), name, pod))


def json_line(
    message: str, *, logger: str, level: str = "INFO", pod: str | None = None, at: float | None = None, **fields: Any
) -> str:
    """Return a log line in ASCII, without line end and fields that are None. `at`: seconds since 1970, default now."""
    when = datetime.fromtimestamp(time.time() if at is None else at, UTC).isoformat(timespec="milliseconds")
    about = {"ts": when.replace("+00:00", "Z"), "level": level, "logger": logger, "pod": pod}
    line = about | {"message": _COLOURS.sub("", message)[:MOST_TEXT]} | fields
    return json.dumps({name: _whole(value) for name, value in line.items() if value is not None})


def as_json(line: str, pod: str | None) -> str:
    """Return a pod's line itself if it is a JSON object, else a JSON object that contains it."""
    return line if _object(line) is not None else json_line(line, logger="output", pod=pod)


def text_of(line: str) -> str:
    """Return the message of a pod's line, JSON or not; for a traceback, its last line."""
    said = _object(line) or {}
    last = str(said.get("exception", "")).rstrip().rpartition("\n")[2]
    return last or str(said.get("message", line))


def write_line(line: str, stream: Any) -> None:
    """Write a line to stdout or stderr unchanged: a JSON object, or a line for the supervisor."""
    beneath = _beneath(stream)
    beneath.write(f"{line}\n")  # in one write: no other thread's line may come before the line end
    beneath.flush()


def _begin_queues(lost: Callable[[int], str]) -> None:
    streams = [cast("TextIO", sys.stdout), cast("TextIO", sys.stderr)]
    queues = [queue_of(streams[0], lost)]
    queues.append(queues[0] if same_file(*streams) else queue_of(streams[1], lost))
    sys.stdout, sys.stderr = map(LogStream, streams, queues)
    _queues.extend(dict.fromkeys(queues))
    atexit.register(finish)


def _whole(value: Any) -> Any:
    """Replace lone surrogates in a text: Python writes them as JSON, but other languages cannot read them."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _beneath(stream: Any) -> TextIO:
    return cast("TextIO", stream.beneath if isinstance(stream, JsonStream) else stream)


class JsonFormatter(logging.Formatter):
    """Formatter that turns a record into a JSON object, with the request's id and the fields of `extra["fields"]`."""

    def __init__(self, pod: str | None):
        super().__init__()
        self._pod = pod

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        error = self.formatException(record.exc_info) if record.exc_info and record.exc_info[1] else None
        return json_line(
            record.getMessage(),
            logger=record.name,
            level=record.levelname,
            pod=self._pod,
            at=record.created,
            request_id=request_ids.current.get(),
            exception=error and error[-MOST_TEXT:],
            **getattr(record, "fields", {}),
        )


class JsonStream(io.TextIOBase):
    """Replacement for stdout or stderr: each printed line becomes a JSON object.

    This includes lines that are JSON already; otherwise text from outside could pass for a line of our log.
    """

    def __init__(self, beneath: TextIO, name: str, pod: str | None):
        self.beneath = beneath
        self._name, self._pod = name, pod
        self._rest = ""
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        """Write the lines that this text completes."""
        with self._lock:
            *lines, rest = (self._rest + text).split("\n")
            self._rest = rest[-MOST_TEXT:]
            # For a line that is overwritten repeatedly, such as a progress bar, only its last form.
            lines = [line.rstrip("\r").rpartition("\r")[2] for line in lines]
            made = [json_line(line, logger=self._name, pod=self._pod) for line in lines if line.strip()]
            self.beneath.write("".join(f"{line}\n" for line in made))
        self.beneath.flush()
        return len(text)

    def flush(self) -> None:
        """See io.TextIOBase."""
        self.beneath.flush()

    def fileno(self) -> int:
        """See io.TextIOBase."""
        return self.beneath.fileno()

    def writable(self) -> bool:
        """See io.TextIOBase."""
        return True


def _object(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if kind is not SystemExit:  # it ends a thread silently
        log.critical("%s: %s", kind.__name__, error, exc_info=error)
