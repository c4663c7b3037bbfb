"""How the processes of a server write their logs: lines as they come, or one JSON object in each line."""

import io
import json
import logging
import os
import re
import sys
import threading
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO, cast

from run_gpt.config import LOG_FORMAT_VARIABLE, LOG_FORMATS
from run_gpt.errors import SetupError
from run_gpt.process import request_ids

POD_VARIABLE = "RUNGPT_POD"
"""The environment variable from which a process knows what its supervisor calls it; what it starts inherits it."""
MOST_TEXT = 4000
"""Characters of a message, and of a traceback its last ones."""
_COLOURS = re.compile(r"\x1b\[.*?[@-~]")

log = logging.getLogger(__name__)


def check_format(log_format: str, where: str) -> str:
    """The format. Raises SetupError, with what asked for it, if there is no such."""
    if log_format not in LOG_FORMATS:
        raise SetupError(f"{where} {log_format}: give one of {', '.join(LOG_FORMATS)}")
    return log_format


def begin(pod: str) -> None:
    """From now on this process, a pod, writes what the environment asks for. To be called before jina is imported.

    `pod`: what it is called if nobody calls it otherwise. Raises SetupError for a format that there is not.
    """
    if check_format(os.environ.get(LOG_FORMAT_VARIABLE) or "text", f"{LOG_FORMAT_VARIABLE}:") == "json":
        begin_json(os.environ.setdefault(POD_VARIABLE, pod))


def is_json() -> bool:
    """Whether this process writes JSON."""
    return isinstance(sys.stderr, JsonStream)


def begin_json(pod: str | None) -> None:
    """From now on every line of this process is a JSON object: of the log, of warnings, and what is printed.

    Only what a library in C writes for itself is not.
    """
    handler = logging.StreamHandler(_beneath(sys.stderr))
    handler.setFormatter(JsonFormatter(pod))
    logging.getLogger().addHandler(handler)
    # Jina's loggers pass nothing on. So they get no handlers: then what they say comes here, too.
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
    """A line of the log, in ASCII and without its end. `at`: seconds since 1970, default now. None is left out."""
    when = datetime.fromtimestamp(time.time() if at is None else at, UTC).isoformat(timespec="milliseconds")
    about = {"ts": when.replace("+00:00", "Z"), "level": level, "logger": logger, "pod": pod}
    line = about | {"message": _COLOURS.sub("", message)[:MOST_TEXT]} | fields
    return json.dumps({name: _whole(value) for name, value in line.items() if value is not None})


def as_json(line: str, pod: str | None) -> str:
    """What a pod wrote: the line itself if it is a JSON object, else one that holds it."""
    return line if _object(line) is not None else json_line(line, logger="output", pod=pod)


def text_of(line: str) -> str:
    """What a pod's line says, whatever its form: of a traceback the last line."""
    said = _object(line) or {}
    last = str(said.get("exception", "")).rstrip().rpartition("\n")[2]
    return last or str(said.get("message", line))


def write_line(line: str, stream: Any) -> None:
    """Write a line that stays as it is to stdout or stderr: a JSON object, or one for the supervisor."""
    beneath = _beneath(stream)
    beneath.write(f"{line}\n")  # at once: another thread's must not come between it and its end
    beneath.flush()


def _whole(value: Any) -> Any:
    """Texts without halves of characters, which Python writes as JSON and other languages do not read."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _beneath(stream: Any) -> TextIO:
    return cast("TextIO", stream.beneath if isinstance(stream, JsonStream) else stream)


class JsonFormatter(logging.Formatter):
    """Makes a JSON object of a record, with `extra={"fields": {...}}` among its fields, and the request's id."""

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
    """Stands for stdout or stderr: each line that is printed becomes a JSON object.

    Whatever the line is: else what comes from outside could look like a line of ours.
    """

    def __init__(self, beneath: TextIO, name: str, pod: str | None):
        self.beneath = beneath
        self._name, self._pod = name, pod
        self._rest = ""
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        """Write the lines that are complete with this."""
        with self._lock:
            *lines, rest = (self._rest + text).split("\n")
            self._rest = rest[-MOST_TEXT:]
            # Of a line that is written over and over, as a bar of progress is, the last form.
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
    if kind is not SystemExit:  # which ends a thread in silence
        log.critical("%s: %s", kind.__name__, error, exc_info=error)
