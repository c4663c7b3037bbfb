"""Without these tests, Ctrl-C or `docker stop` could cut answers, print a traceback, or leave processes behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_supervisor import children_of, is_alive, wait_until

from run_gpt.flows.ports import answers_ok, free_ports

CODE = """
import sys; sys.path.insert(0, {folder!r})
from test_supervisor import light_pod
from run_gpt.config import ServeConfig
from run_gpt.flows import server
from run_gpt.flows.supervisor import Supervisor

def light(config, on_event):
    gateway = light_pod("gateway", config.http_port, *{behaviours!r}, stop_seconds=60)
    return Supervisor(gateway, [light_pod("worker 0", {port})], on_event)

server.new_supervisor = light
sys.exit(server.serve(ServeConfig(grpc_port=0, http_port=0)))
"""

# The same with the command's own output, and its log on a terminal, or on a disk that is full.
COMMAND = CODE.replace(
    "sys.exit(server.serve(ServeConfig(grpc_port=0, http_port=0)))",
    """
from run_gpt.cli import serving
serving.models.fetch = lambda *given, **named: None
serving.console._force_terminal = {terminal}
sys.exit(serving.run_server(ServeConfig(grpc_port={ports[0]}, http_port={ports[1]})))
""",
)


@contextmanager
def serving(*behaviours: str) -> Iterator[subprocess.Popen[str]]:
    code = CODE.format(folder=str(Path(__file__).parent), behaviours=behaviours, port=free_ports(1)[0])
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    try:
        assert process.stderr is not None
        assert any(line == "ready\n" for line in process.stderr)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_sigterm_is_an_orderly_stop_with_exit_code_0() -> None:
    with serving() as process:
        children = children_of(process.pid)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 0
        assert (out, err) == ("", "stopping\nstopped\n")
        assert not any(is_alive(pid) for pid in children)


def test_the_first_ctrl_c_waits_for_the_gateway_and_the_second_ends_it() -> None:
    with serving("deaf") as process:
        children = children_of(process.pid)
        assert len(children) == 2
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.readline() == "stopping\n"
        assert all(is_alive(pid) for pid in children)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "Traceback" not in err
        assert not any(is_alive(pid) for pid in children)


def test_ctrl_c_in_the_terminal_reaches_the_server_alone() -> None:
    with serving("deaf") as process:
        children = children_of(process.pid)
        process.send_signal(signal.SIGINT)  # a terminal would send it to the whole process group: see the next line
        groups = {pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[2]) for pid in children}
        assert all(group == pid for pid, group in groups.items())


def test_a_killed_server_leaves_no_process() -> None:
    with serving("deaf") as process:
        children = children_of(process.pid)
        process.kill()
        wait_until(lambda: not any(is_alive(pid) for pid in children))


@pytest.mark.parametrize("log", ["/dev/full", "terminal"])
def test_a_server_whose_log_fails_goes_on_and_a_closed_terminal_drains(log: str) -> None:
    """A full disk once ended healthy replicas, and a closed terminal cut every stream."""
    ports = free_ports(3)
    code = COMMAND.format(
        folder=str(Path(__file__).parent), behaviours=(), port=ports[2], ports=ports, terminal=log == "terminal"
    )
    terminal, stderr = os.openpty() if log == "terminal" else (os.open(log, os.O_WRONLY), os.open(log, os.O_WRONLY))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=stderr, stderr=stderr, start_new_session=True)
    try:
        wait_until(lambda: answers_ok("127.0.0.1", ports[1], "/ready"))
        worker = next(pid for pid in children_of(process.pid) if "worker" in command_of(pid))
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: any("worker" in command_of(pid) and pid != worker for pid in children_of(process.pid)))
        children = children_of(process.pid)
        os.close(terminal)
        process.send_signal(signal.SIGHUP if log == "terminal" else signal.SIGTERM)
        assert process.wait(20) == 0
        assert not any(is_alive(pid) for pid in children)
    finally:
        process.kill()
        process.wait()
        os.close(stderr)


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
