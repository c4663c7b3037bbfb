"""Without these tests, Ctrl-C or `docker stop` could cut answers, print a traceback, or leave processes behind."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from test_supervisor import children_of, is_alive, wait_until

from run_gpt.flows.ports import free_ports

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
