"""`rungpt top` as users run it: plain text, narrow terminals, the live view, and errors if no server answers."""

import http.server
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
from exposition import Exposition
from rich.console import Console
from typer.testing import CliRunner

from run_gpt.cli import main
from run_gpt.cli.app import app
from run_gpt.top.screen import duration, render
from run_gpt.top.view import ModelRow, ReplicaRow, View
from run_gpt.top.watch import Snapshot

ADDRESS = "127.0.0.1:5001"
READY = {"replicas": {"ready": 1, "total": 1, "each": [{"address": ADDRESS, "state": "ready"}]}}
ROW = ReplicaRow(ADDRESS, "smollm2", "ready", 0, 2, 1, 3, 16, 0.123, 45.67, 0.00912, 2.5)
VIEW = View(
    model="smollm2",
    version="0.2.0",
    uptime=7384,
    ready=1,
    total=2,
    in_flight=3,
    seconds=1,
    requests={"200": 2.0, "429": 0.5},
    finished={"stop": 2.0},
    prompt_tokens=120,
    generated_tokens=45.67,
    reused_share=0.4,
    ttft=(0.0351, 0.12),
    inter_token=(None, None),
    replicas=[ROW, replace(ROW, address="127.0.0.1:5002", state="lost", running=None)],
    errors={"queue_full": (12, 0.5), "unavailable": (3, 0.0)},
)


@pytest.fixture
def served():
    """Yield a function: `served(key=None)` returns the URL of a server with a hand-written /metrics.

    Its tokens rise by 10 with each reading of /metrics. `served.stop()` stops the server.
    """
    servers = []

    def start(key=None):
        exposition = Exposition()
        exposition.of("num_requests_running").set(1)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                allowed = key is None or self.headers["Authorization"] == f"Bearer {key}"
                if self.path == "/metrics":
                    exposition.of("generation_tokens").inc(10)
                body = {"/metrics": exposition.text(), "/ready": json.dumps(READY)}[self.path].encode()
                self.send_response(200 if allowed else 401)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    def stop():
        while servers:
            server = servers.pop()
            server.shutdown()
            server.server_close()

    start.stop = stop
    yield start
    stop()


def shown(view, width, notes=()):
    console = Console(file=io.StringIO(), width=width, markup=False, emoji=False)
    console.print(render(Snapshot(view, list(notes)), "127.0.0.1:52000", width))
    return console.file.getvalue()


def test_one_look_has_every_number():
    text = shown(VIEW, 120, ["started again: gateway"])
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.strip()]
    assert lines == [
        ["smollm2", "1/2 replicas ready", "up 2 h 3 min", "127.0.0.1:52000", "RunGPT 0.2.0"],
        ["started again: gateway"],
        ["requests/s", "2.5", "200 2.0", "429 0.5", "in flight 3"],
        ["finished/s", "2.0", "stop 2.0"],
        ["tokens/s", "prompt 120.0", "generated 45.7", "reused 40%"],
        ["first token", "p50 35.1 ms", "p90 120 ms"],
        ["inter-token", "p50 - ms", "p90 - ms"],
        ["errors", "queue_full 12 (0.5/s)", "unavailable 3 (0.0/s)"],
        ["REPLICA", "STATE", "RUN", "WAIT", "TOK/S", "SLOTS", "KV %", "STEP MS", "BATCH", "RESTARTS"],
        [ADDRESS, "ready", "2", "1", "45.7", "3/16", "12.3", "9.12", "2.5", "0"],
        ["127.0.0.1:5002", "lost", "-", "1", "45.7", "3/16", "12.3", "9.12", "2.5", "0"],
    ]


def test_several_models_have_a_row_each_and_replicas_say_whose_they_are():
    """Users find a model that is slow, or that does not load, by its name."""
    models = [ModelRow("smollm2", "loaded", 2, 1, 45.67, 3, 0, 2), ModelRow("tiny", "failed", 0, 0, 0, 1, 4, 1)]
    asleep = replace(ROW, address="127.0.0.1:5002", model="tiny", state="unloaded")
    view = replace(VIEW, model="smollm2, tiny", models=models, replicas=[ROW, asleep])
    lines = [re.split(r"\s{2,}", line.strip()) for line in shown(view, 120).splitlines() if line.strip()]
    assert lines[0][:2] == ["smollm2, tiny", "1/2 replicas ready"]
    assert lines[7:10] == [
        ["MODEL", "STATE", "RUN", "WAIT", "TOK/S", "LOADS", "FAILED", "UNLOADS"],
        ["smollm2", "loaded", "2", "1", "45.7", "3", "0", "2"],
        ["tiny", "failed", "0", "0", "0.0", "1", "4", "1"],
    ]
    assert lines[10][:3] == ["REPLICA", "STATE", "MODEL"]
    assert [line[:3] for line in lines[11:]] == [
        [ADDRESS, "ready", "smollm2"],
        ["127.0.0.1:5002", "unloaded", "tiny"],
    ]
    for width in (40, 80):
        assert all(len(line) <= width for line in shown(view, width).splitlines()[1:])


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100])
def test_a_narrow_terminal_shows_fewer_columns_and_no_cut_number(width):
    """A number without its last digit is a wrong number."""
    text = shown(VIEW, width)
    assert all(len(line) <= width for line in text.splitlines())
    row = next(line for line in text.splitlines() if line.startswith(ADDRESS))
    whole = [ADDRESS, "ready", "2", "1", "45.7", "3/16", "12.3", "9.12", "2.5", "0"]
    assert row.split() == whole[: len(row.split())]
    assert len(row.split()) >= {20: 1, 40: 3, 60: 5, 80: 8, 100: 10}[width]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (60, "1 min"), (303, "5 min 3 s"), (7384, "2 h 3 min"), (93600, "1 d 2 h")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_once_takes_two_looks_and_prints_plain_text(served):
    done = CliRunner().invoke(app, ["top", "--url", served() + "/", "--once", "--interval", "0.1"])
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.stdout
    rate = float(re.search(r"generated ([\d.]+)", done.stdout)[1])
    assert 0 < rate <= 100
    assert done.stdout.startswith("smollm2  1/1 replicas ready")


def test_the_key_is_that_of_the_option_or_of_the_environment(served, monkeypatch):
    url = served("secret-key")
    arguments = ["top", "--url", url, "--once", "--interval", "0.1"]
    assert CliRunner().invoke(app, [*arguments, "--api-key", "secret-key"]).exit_code == 0
    monkeypatch.setenv("RUNGPT_API_KEY", "secret-key")
    assert CliRunner().invoke(app, arguments).exit_code == 0


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:1", r"no server answers at 127.0.0.1:1 \(.*\): start one with `rungpt serve`"),
        ("127.0.0.1:52000", "--url .*: write http://HOST:PORT"),
        ("http://127.0.0.1:many", "--url .*: write http://HOST:PORT"),
        ("http://u:password@", "--url .*: write http://HOST:PORT"),
    ],
)
def test_a_server_that_is_not_there_is_one_line(monkeypatch, capsys, url, said):
    assert re.fullmatch(f"rungpt: {said}\n", fail(monkeypatch, capsys, "--url", url, "--once"))


def test_a_server_that_wants_a_key_is_one_line(monkeypatch, capsys, served):
    error = fail(monkeypatch, capsys, "--url", served("secret-key"), "--once")
    assert error.endswith("it requires a key: set RUNGPT_API_KEY, or give --api-key\n")


def test_a_script_is_told_of_once(monkeypatch, capsys):
    assert "give --once" in fail(monkeypatch, capsys)


def fail(monkeypatch, capsys, *arguments):
    """Run `rungpt top ARGUMENTS`, which must end with exit code 1, and return its stderr."""
    monkeypatch.setattr("sys.argv", ["rungpt", "top", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert "password" not in error
    return error


@contextmanager
def live(url):
    """Yield the process of `rungpt top` on a terminal, and the test's end of the terminal."""
    mine, terminal = pty.openpty()
    command = [sys.executable, "-m", "run_gpt.cli", "top", "--url", url, "--interval", "0.2"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    try:
        yield process, mine
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(mine)
        os.close(terminal)


@pytest.mark.parametrize("end", ["q", "ctrl-c"])
def test_the_live_view_shows_the_server_and_ends_cleanly(served, end):
    """Otherwise the user is left with a traceback, or with a terminal without echo."""
    with live(served()) as (process, terminal):
        before = termios.tcgetattr(terminal)
        assert b"smollm2" in until(terminal, b"generated")
        assert termios.tcgetattr(terminal) != before
        if end == "q":
            os.write(terminal, b"q")
        else:
            process.send_signal(signal.SIGINT)
        screen = until(terminal, b"\x1b[?1049l")  # the previous screen is restored
        assert process.wait(10) == 0
        assert b"Traceback" not in screen
        assert termios.tcgetattr(terminal) == before


def test_the_live_view_outlives_its_server(served):
    """Users look at the view most when a server has stopped."""
    with live(served()) as (process, terminal):
        until(terminal, b"generated")
        served.stop()
        until(terminal, b"no answer for")
        assert b"smollm2" in until(terminal, b"no answer for"), "the last numbers stay"
        os.write(terminal, b"q")
        assert process.wait(10) == 0


def until(terminal, text, seconds=15):
    """Read the terminal's output up to this text, and return it."""
    seen, deadline = b"", time.monotonic() + seconds
    while text not in seen:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([terminal], [], [], left)[0]:
            pytest.fail(f"{text!r} did not come: {seen!r}")
        seen += os.read(terminal, 65536)
    return seen
