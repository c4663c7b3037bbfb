"""Replacements for stdout and stderr that no writer waits for: their text goes through a `LogQueue`."""

import io
import os
import select
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from run_gpt.process.log_queue import LogQueue


class LogStream(io.TextIOBase):
    """Text stream whose writes are queued. It neither waits nor fails, as a writer of a log must not."""

    def __init__(self, beneath: TextIO, queue: "LogQueue[bytes]"):
        self.beneath, self.queue = beneath, queue

    def write(self, text: str) -> int:
        """Queue the text."""
        data = text.encode(self.encoding, "backslashreplace")
        self.queue.put(data, len(data), text.count("\n"))
        return len(text)

    def flush(self) -> None:
        """Do nothing: loggers flush after each line. `queue.finish` waits for the lines."""

    def fileno(self) -> int:
        """See io.TextIOBase."""
        return self.beneath.fileno()

    def isatty(self) -> bool:
        """See io.TextIOBase."""
        return self.beneath.isatty()

    def writable(self) -> bool:
        """See io.TextIOBase."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the stream beneath."""
        return getattr(self.beneath, "encoding", None) or "utf-8"


def queue_of(stream: TextIO, lost: Callable[[int], str]) -> "LogQueue[bytes]":
    """Return a new queue that writes to the file of `stream`. `lost(lines)`: line that reports lost ones."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        take = _File(stream.fileno()).write
    except (OSError, ValueError, AttributeError):  # a stream of Python's, without a file
        take = _Text(stream, encoding).write
    return LogQueue(take, lambda lines: f"{lost(lines)}\n".encode(encoding, "backslashreplace"))


def same_file(one: TextIO, other: TextIO) -> bool:
    """Return True if two streams write to the same file, so that the order of their lines matters."""
    try:
        return os.path.samestat(os.fstat(one.fileno()), os.fstat(other.fileno()))
    except (OSError, ValueError, AttributeError):
        return False


def release_libraries(fd: int) -> None:
    """Let the lines that C libraries write to this file be dropped while it is full; they would wait for its reader.

    Only for pipes and terminals, which alone make a writer wait. The file is opened anew: other processes that share it
    keep their own way of writing.
    """
    with suppress(OSError):
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
            return
        own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        os.dup2(own, fd)
        os.close(own)


class _File:
    """File that is written through its descriptor; a failed write goes on at the byte that it had reached."""

    def __init__(self, fd: int):
        self._fd, self._done = fd, 0

    def write(self, data: bytes) -> None:
        """Write all of the data, waiting as long as it takes. Raises OSError; the next call must have the same data."""
        while self._done < len(data):
            try:
                self._done += os.write(self._fd, memoryview(data)[self._done :])
            except BlockingIOError:
                ready = select.poll()
                ready.register(self._fd, select.POLLOUT)
                ready.poll(1000)
        self._done = 0


class _Text:
    """Stream of Python's that has no file."""

    def __init__(self, stream: TextIO, encoding: str):
        self._stream, self._encoding = stream, encoding

    def write(self, data: bytes) -> None:
        """Write the data, and flush. Raises OSError."""
        self._stream.write(data.decode(self._encoding))
        self._stream.flush()
