"""Without these tests, a full disk or a terminal that nobody reads could stop or end every process of a server."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from run_gpt.process import log_queue
from run_gpt.process.log_queue import LogQueue
from run_gpt.process.log_stream import LogStream, queue_of

LIMIT = 20.0


class Log:
    """Log that can be blocked, and that can fail."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.open = threading.Event()
        self.open.set()
        self.error: Exception | None = None
        self.tries = 0

    def take(self, line: str) -> None:
        self.open.wait(LIMIT)
        self.tries += 1
        if self.error is not None:
            raise self.error
        self.lines.append(line)


def queue_before(log: Log, most: int = 100) -> "LogQueue[str]":
    return LogQueue(log.take, lambda lines: f"{lines} lost", most)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def test_a_log_that_is_not_read_costs_lines_and_no_time() -> None:
    log = Log()
    log.open.clear()
    queue = queue_before(log)
    for number in range(50):
        queue.put(f"line {number}", 10)
    assert queue.dropped == 40
    assert not queue.wait_for_room(0.01)
    assert not queue.finish(0.01)
    log.open.set()
    assert queue.wait_for_room(LIMIT)
    assert queue.finish(LIMIT)
    queue.put("later", 5)
    assert queue.finish(LIMIT)
    assert log.lines == [*(f"line {number}" for number in range(10)), "40 lost", "later"]


def test_a_failed_write_is_tried_again_so_the_log_goes_on_when_the_disk_has_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_queue, "RETRY_SECONDS", 0.01)
    log = Log()
    log.error = OSError(28, "No space left on device")
    queue = queue_before(log)
    queue.put("first", 5)
    wait_until(lambda: log.tries > 2)
    queue.put("second", 6)
    log.error = None
    assert queue.finish(LIMIT)
    assert (log.lines, queue.dropped) == (["first", "second"], 0)


def test_any_other_error_costs_its_line_only() -> None:
    log = Log()
    log.error = ValueError("I/O operation on closed file")
    queue = queue_before(log)
    queue.put("first", 5, 3)
    assert queue.finish(LIMIT)
    log.error = None
    queue.put("second", 6)
    assert queue.finish(LIMIT)
    assert (log.lines, queue.dropped) == (["3 lost", "second"], 3)


def test_the_end_waits_for_the_last_lines_but_not_for_ever() -> None:
    log = Log()
    queue = queue_before(log)
    queue.put("last", 4)
    queue.close(LIMIT)
    assert log.lines == ["last"]
    log.open.clear()
    queue.put("one more", 8)
    queue.close(0.01)
    log.open.set()


def test_a_pipe_gets_every_byte_although_it_is_full_now_and_then() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    with os.fdopen(read, "rb") as reader, os.fdopen(write, "w") as beneath:
        stream = LogStream(beneath, queue_of(beneath, lambda lines: f"{lines} lost"))
        text = "".join(f"{number} {'y' * 200}\n" for number in range(2000))
        for line in text.splitlines(keepends=True):
            stream.write(line)
        got = b""
        while len(got) < len(text):
            got += reader.read1()
        assert got.decode() == text
        assert stream.queue.finish(LIMIT)


PROGRAM = """
import logging, os, sys
from run_gpt.process import logs
logs.begin("gateway")
for number in range(4000):
    logging.getLogger("run_gpt.x").warning("line %d %s", number, "y" * 500)
    print("printed", number, file=sys.stderr, flush=True)
os.write(int(sys.argv[1]), b"%d" % logs.dropped_lines())
"""


@pytest.mark.parametrize(("log", "log_format"), [("full disk", "text"), ("not read", "json"), ("closed", "text")])
def test_a_process_does_not_depend_on_its_log(log: str, log_format: str) -> None:
    """Its exit code is 0, and it counts the lines that had to go."""
    count, counted = os.pipe()
    reader, writer = os.pipe()
    if log == "closed":
        os.close(reader)
    stderr = os.open("/dev/full", os.O_WRONLY) if log == "full disk" else writer
    env = os.environ | {"RUNGPT_LOG_FORMAT": log_format}
    command = [sys.executable, "-c", PROGRAM, str(counted)]
    done = subprocess.run(command, stdout=stderr, stderr=stderr, pass_fds=(counted,), env=env, timeout=60, check=False)
    assert done.returncode == 0
    assert int(os.read(count, 100)) > 1000
    for fd in {count, counted, writer, stderr} | (set() if log == "closed" else {reader}):
        os.close(fd)
