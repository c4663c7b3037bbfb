"""Programs read the log line by line as JSON: a line that is not JSON, or that a client forged, would spoil it."""

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
from typing import Any, cast

import pytest

from run_gpt.errors import SetupError
from run_gpt.flows import Event, printer
from run_gpt.gateway.record import Record
from run_gpt.process import logs, request_ids

FORGED = '\n{"ts": "2026-01-01T00:00:00.000Z", "level": "INFO", "message": "forged"}\n'

PROGRAM = """
import logging, sys, threading, warnings
from run_gpt.process import logs, request_ids
from run_gpt.process.log_stream import LogStream
logs.begin("gateway")
import run_gpt.process._jina
from jina.logging.logger import JinaLogger
request_ids.current.set("mine")
jina = JinaLogger("worker")
assert all(isinstance(handler.stream, LogStream) for handler in jina.handlers if hasattr(handler, "stream"))
jina.warning("of Jina's")
logging.getLogger("run_gpt.x").warning("of ours: %s", "a\\nb")
logging.getLogger("run_gpt.x").info("too little to tell")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("run_gpt.x").exception("it failed")
library = logging.getLogger("library")
library.addHandler(logging.StreamHandler())
library.propagate = False
library.error("by a handler of its own")
warnings.warn("of Python's")
print("loading: 10%\\rloading: 100%", file=sys.stderr)
print("printed")
thread = threading.Thread(target=lambda: [][0])
thread.start()
thread.join()
logs.write_line('{"event": "load"}', sys.stdout)
raise RuntimeError("the end")
"""


def run(log_format: str) -> "subprocess.CompletedProcess[str]":
    env = {name: value for name, value in os.environ.items() if name != logs.POD_VARIABLE}
    env |= {"RUNGPT_LOG_FORMAT": log_format, "LC_ALL": "C", "PYTHONUNBUFFERED": "1"}
    return subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env, timeout=60)


def test_every_line_of_a_process_is_a_json_object() -> None:
    """This includes Jina's lines, those of libraries with their own handlers, warnings, prints and uncaught errors."""
    done = run("json")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert all(line["pod"] == "gateway" and line["ts"].endswith("Z") and line["level"] for line in lines)
    told = {(line["logger"], line["level"], line["message"].splitlines()[0]) for line in lines}
    assert {
        ("worker", "WARNING", "of Jina's"),
        ("run_gpt.x", "WARNING", "of ours: a"),
        ("run_gpt.x", "ERROR", "it failed"),
        ("stderr", "INFO", "by a handler of its own"),
        ("stderr", "INFO", "loading: 100%"),
        ("run_gpt.process.logs", "CRITICAL", "IndexError: list index out of range"),
        ("run_gpt.process.logs", "CRITICAL", "RuntimeError: the end"),
    } <= told
    assert any("of Python's" in line["message"] and line["logger"] == "py.warnings" for line in lines)
    assert not [line for line in lines if "too little" in line["message"]]
    (failed,) = [line for line in lines if line["message"] == "it failed"]
    assert failed["exception"].endswith("ZeroDivisionError: division by zero")
    assert {line["request_id"] for line in lines if line["logger"] == "run_gpt.x"} == {"mine"}
    printed, load = (json.loads(line) for line in done.stdout.splitlines())
    assert (printed["message"], printed["logger"], load) == ("printed", "stdout", {"event": "load"})


def test_text_is_as_it_was() -> None:
    done = run("text")
    assert "of ours: a\nb\nit failed\nTraceback" in done.stderr
    assert done.stderr.endswith("RuntimeError: the end\n")


def test_a_format_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNGPT_LOG_FORMAT", "xml")
    with pytest.raises(SetupError, match=r"RUNGPT_LOG_FORMAT: xml.*text, json"):
        logs.begin("gateway")


def formatted(message: str, *arguments: object, **more: Any) -> dict[str, Any]:
    record = logging.getLogger("x").makeRecord("x", logging.INFO, "", 0, message, arguments, None, **more)
    line = logs.JsonFormatter("gateway").format(record)
    assert "\n" not in line
    assert line.isascii()
    return cast("dict[str, Any]", json.loads(line))


def test_a_record_of_a_request_has_its_facts_as_fields_and_forges_nothing() -> None:
    record = Record(method="POST", route="/x" + FORGED + "é" * 10_000, user='"' + FORGED + "u" * 10_000, key="alice")
    record.take_client_id("mine")
    record.requests, record.error = 2, "queue_full"
    line = formatted("%s", "the line", extra={"fields": record.facts("429")})
    assert {name: line[name] for name in ("method", "status", "key", "client_id", "requests", "error")} == {
        "method": "POST",
        "status": "429",
        "key": "alice",
        "client_id": "mine",
        "requests": 2,
        "error": "queue_full",
    }
    assert isinstance(line["seconds"], float)
    assert line["id"] == record.request_id
    assert "endpoint" not in line, "there is nothing to say of it"
    assert (len(line["route"]), len(line["user"])) == (200, 200)
    assert len(json.dumps(line)) < 1500


def test_half_a_character_is_in_no_line() -> None:
    """A client may send half a character: Python writes it as JSON, but strict readers stop at it."""
    line = formatted("\udcff", extra={"fields": {"user": "half \ud83d, whole \U0001f600"}})
    assert (line["message"], line["user"]) == ("?", "half ?, whole \U0001f600")


def test_a_message_is_bounded() -> None:
    assert len(formatted("x" * 100_000)["message"]) == logs.MOST_TEXT


async def test_a_line_has_the_id_of_the_request_that_its_task_works_for() -> None:
    """With the id of another request, an operator would look in the wrong place."""

    async def work(name: str) -> dict[str, Any]:
        request_ids.current.set(name)
        await asyncio.sleep(0)
        return formatted("failed")

    lines = await asyncio.gather(*map(work, ["a", "b", "c"]))
    assert [line["request_id"] for line in lines] == ["a", "b", "c"]
    assert "request_id" not in formatted("nobody's")


def test_what_is_printed_is_no_line_of_ours_whatever_it_looks_like() -> None:
    beneath = io.StringIO()
    stream = logs.JsonStream(beneath, "stderr", "worker 0")
    for piece in ("one, ", "still one", FORGED, "\n", "x" * 100_000, "\n", "no end"):
        stream.write(piece)
    lines = [json.loads(line) for line in beneath.getvalue().splitlines()]
    assert [line["message"][:9] for line in lines] == ["one, stil", '{"ts": "2', "xxxxxxxxx"]
    assert {(line["logger"], line["pod"]) for line in lines} == {("stderr", "worker 0")}
    logs.write_line("a line of its own form", stream)
    assert beneath.getvalue().endswith("\na line of its own form\n")


@pytest.mark.parametrize(
    ("line", "passes"),
    [
        ('{"ts": "t", "message": "m"}', True),
        ('{"event": "load", "in_flight": 1}', True),
        ("E0101 00:00:00 server.cc:1] bind failed", False),
        ('{"half', False),
        ('["a list"]', False),
        ('{"a":' * 5000, False),
    ],
)
def test_the_supervisor_passes_json_on_and_wraps_all_else(
    line: str, passes: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    printer("json")(Event("output", line, "worker 1"))
    (printed,) = capsys.readouterr().err.splitlines()
    wrapped = json.loads(printed)
    assert (printed == line) == passes
    if not passes:
        assert (wrapped["pod"], wrapped["message"]) == ("worker 1", line[: logs.MOST_TEXT])


def test_the_supervisors_events_are_lines_of_the_same_log(capsys: pytest.CaptureFixture[str]) -> None:
    printer("json")(Event("died", "worker 1 ended (SIGKILL)", "worker 1"))
    printer("json")(Event("ready", "ready"))
    died, ready = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (died["event"], died["level"], died["pod"]) == ("died", "WARNING", "worker 1")
    assert (ready["event"], ready["level"], ready["message"]) == ("ready", "INFO", "ready")
    assert "pod" not in ready
    assert set(died) - {"pod"} == set(ready) == {"ts", "level", "logger", "message", "event"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("out of cheese", "out of cheese"),
        ('{"message": "no room"}', "no room"),
        ('{"message": "x", "exception": "Traceback\\n  File\\nValueError: no room\\n"}', "ValueError: no room"),
        ('{"event": "load"}', '{"event": "load"}'),
    ],
)
def test_why_a_pod_ended_is_said_in_words(line: str, says: str) -> None:
    assert logs.text_of(line) == says
