"""Without these tests, dead replicas could stay dead, or processes could outlive their server."""

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from run_gpt.errors import ModelLoadError, SetupError
from run_gpt.flows import heartbeat, supervisor
from run_gpt.flows.backoff import Backoff
from run_gpt.flows.ports import answers_ok, free_ports, is_listening
from run_gpt.flows.process import PodProcess, PodSpec
from run_gpt.flows.supervisor import Event, Supervisor

LIGHT_POD = str(Path(__file__).with_name("light_pod.py"))
LIMIT = 20.0


def light_pod(name: str, port: int, *behaviours: str, stop_seconds: float = 5.0) -> PodSpec:
    role = "gateway" if name == "gateway" else "worker"
    ready: Callable[[], bool] = functools.partial(is_listening, "127.0.0.1", port)
    if role == "gateway":
        ready = functools.partial(answers_ok, "127.0.0.1", port, "/ready")
    command = (sys.executable, "-S", "-E", LIGHT_POD, role, str(port), *behaviours)
    return PodSpec(name=name, role=role, command=command, is_ready=ready, stop_seconds=stop_seconds)


class Running:
    """Supervisor in a thread, and its events."""

    def __init__(self, *specs: PodSpec):
        self.events: list[Event] = []
        self.error: BaseException | None = None
        self._changed = threading.Condition()
        quick = functools.partial(Backoff, initial=0.05, maximum=0.2)
        self.supervisor = Supervisor(specs[-1], specs[:-1], self._note, new_backoff=quick)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.supervisor.run()
        except SetupError as error:
            self.error = error
        finally:
            self._note(Event("stopped", "returned"))

    def _note(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait_for(self, kind: str, pod: str | None = None, count: int = 1, limit: float = LIMIT) -> Event:
        def found() -> list[Event]:
            return [e for e in self.events if e.kind == kind and (pod is None or e.pod == pod)]

        with self._changed:
            assert self._changed.wait_for(lambda: len(found()) >= count, limit), self.events
            return found()[count - 1]

    def join(self) -> None:
        self.thread.join(LIMIT)
        assert not self.thread.is_alive()

    def kinds(self, pod: str) -> list[str]:
        return [e.kind for e in self.events if e.pod == pod]


@contextmanager
def running(*specs: PodSpec) -> Iterator[Running]:
    run = Running(*specs)
    try:
        yield run
    finally:
        run.supervisor.kill()
        run.join()


def wait_until(condition: Callable[[], Any], limit: float = LIMIT) -> Any:
    deadline = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)  # between two polls
    return value


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_killed_worker_comes_back_while_the_others_serve() -> None:
    ports = free_ports(3)
    specs = [light_pod("worker 0", ports[0]), light_pod("worker 1", ports[1]), light_pod("gateway", ports[2])]
    with running(*specs) as run:
        run.wait_for("ready")
        before = run.supervisor.pids()
        os.kill(before["worker 1"], signal.SIGKILL)
        assert run.wait_for("died").message == "worker 1 ended (SIGKILL); starting it again in 0.05 s"
        run.wait_for("pod_ready", "worker 1", count=2)
        after = run.supervisor.pids()
        assert is_listening("127.0.0.1", ports[1])
        assert after["worker 1"] != before["worker 1"]
        assert (after["worker 0"], after["gateway"]) == (before["worker 0"], before["gateway"])


def test_a_killed_gateway_comes_back() -> None:
    ports = free_ports(2)
    with running(light_pod("worker 0", ports[0]), light_pod("gateway", ports[1])) as run:
        run.wait_for("ready")
        os.kill(run.supervisor.pids()["gateway"], signal.SIGKILL)
        run.wait_for("pod_ready", "gateway", count=2)
        assert answers_ok("127.0.0.1", ports[1], "/ready")


@pytest.mark.parametrize("fault", ["blocked", "failing"])
def test_a_report_that_is_stuck_or_fails_keeps_no_process_from_coming_back(fault: str) -> None:
    """Reports go to the log: a full disk, or a terminal that is stopped by Ctrl-S, must not be the server's end."""
    ports, unblocked, ready = free_ports(2), threading.Event(), threading.Event()

    def report(event: Event) -> None:
        if fault == "failing":
            raise OSError(28, "No space left on device")
        unblocked.wait(LIMIT)

    quick = functools.partial(Backoff, initial=0.05, maximum=0.2)
    gateway, worker = light_pod("gateway", ports[1]), light_pod("worker 0", ports[0])
    supervisor = Supervisor(gateway, [worker], report, on_ready=ready.set, new_backoff=quick)
    thread = threading.Thread(target=supervisor.run, daemon=True)
    thread.start()
    assert ready.wait(LIMIT)
    before = supervisor.pids()["worker 0"]
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: supervisor.pids().get("worker 0", before) != before)
    supervisor.request_stop()
    thread.join(LIMIT)
    assert not thread.is_alive()
    unblocked.set()


def test_lines_that_cannot_be_passed_on_are_left_to_the_process_that_writes_them() -> None:
    """So it counts them in its metrics. The lines of a process that has ended are read, since they say why."""
    code = "import os; os.set_blocking(1, False); [os.write(1, b'y' * 1000 + b'\\n') for _ in range(1000)]"
    spec = PodSpec(name="worker 0", role="worker", command=(sys.executable, "-c", code), is_ready=lambda: False)
    lines: list[str] = []
    ended = threading.Event()
    process = PodProcess(spec, lines.append, lambda process: ended.set(), has_room=lambda seconds: False)
    assert ended.wait(LIMIT)
    assert process.last_line.startswith("BlockingIOError")
    assert 10 < len(lines) < 500


def test_workers_serve_until_the_gateway_has_ended() -> None:
    ports = free_ports(2)
    # A gateway that does not react to SIGTERM acts like one that drains: the worker must be there all that time.
    gateway = light_pod("gateway", ports[1], "deaf", stop_seconds=0.5)
    with running(light_pod("worker 0", ports[0]), gateway) as run:
        run.wait_for("ready")
        worker, deaf = run.supervisor.pids()["worker 0"], run.supervisor.pids()["gateway"]
        run.supervisor.request_stop()
        run.wait_for("stopping")

        def gateway_has_ended() -> bool:
            served = is_alive(worker)
            if not is_alive(deaf):
                return True
            assert served
            return False

        wait_until(gateway_has_ended)
        run.wait_for("killed", "gateway")
        run.join()
        assert not is_alive(worker)
        assert run.error is None


def test_a_stuck_worker_and_its_child_are_killed_after_the_grace_time() -> None:
    ports = free_ports(2)
    worker = light_pod("worker 0", ports[0], "deaf", "child", stop_seconds=0.2)
    with running(worker, light_pod("gateway", ports[1])) as run:
        child = int(run.wait_for("output", "worker 0").message.removeprefix("child "))
        run.wait_for("ready")
        pids = [child, *run.supervisor.pids().values()]
        run.supervisor.request_stop()
        run.join()
        run.wait_for("killed", "worker 0")
        wait_until(lambda: not any(is_alive(pid) for pid in pids))


def test_a_stop_while_a_worker_loads_ends_it() -> None:
    ports = free_ports(2)
    with running(light_pod("worker 0", ports[0], "loads"), light_pod("gateway", ports[1])) as run:
        run.wait_for("output", "worker 0")
        pids = run.supervisor.pids().values()
        run.supervisor.request_stop()
        run.join()
        assert not any(is_alive(pid) for pid in pids)
        assert run.error is None


def test_a_worker_that_cannot_start_ends_the_start_with_its_own_error() -> None:
    ports = free_ports(3)
    specs = [light_pod("worker 0", ports[0]), light_pod("worker 1", ports[1], "fails"), light_pod("gateway", ports[2])]
    with running(*specs) as run:
        run.join()
        assert isinstance(run.error, ModelLoadError)
        assert str(run.error) == "no such file: model.gguf"
        assert run.supervisor.pids() == {}


def test_a_worker_that_crashes_at_start_ends_the_start_with_its_last_line() -> None:
    ports = free_ports(2)
    with running(light_pod("worker 0", ports[0], "crashes"), light_pod("gateway", ports[1])) as run:
        run.join()
        assert str(run.error) == "worker 0 ended 3 times at start (exit code 1): out of cheese"


def test_what_was_ready_may_die_for_as_long_as_another_one_loads() -> None:
    """Crashes of one model must not end a server in which another model takes long to load."""
    ports = free_ports(3)
    specs = [light_pod("worker 0", ports[0], "loads"), light_pod("worker 1", ports[1]), light_pod("gateway", ports[2])]
    with running(*specs) as run:
        for count in range(1, 6):
            run.wait_for("pod_ready", "worker 1", count=count)
            os.kill(run.supervisor.pids()["worker 1"], signal.SIGKILL)
            run.wait_for("died", "worker 1", count=count)
        run.wait_for("pod_ready", "worker 1", count=6)
        assert run.error is None
        assert run.kinds("worker 0") == ["starting", "output"]


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a process hang after a second."""
    monkeypatch.setattr(heartbeat, "ASLEEP_SECONDS", 1.0)
    monkeypatch.setattr(supervisor, "LOOK_SECONDS", 0.1)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")


@needs_proc
@pytest.mark.usefixtures("quick_looks")
@pytest.mark.parametrize(("pod", "behaviours"), [("worker 0", ["beats"]), ("gateway", ["beats"]), ("worker 0", [])])
def test_a_stopped_process_is_replaced(pod: str, behaviours: list[str]) -> None:
    """Its requests would wait until somebody continues it."""
    ports = free_ports(2)
    specs = [light_pod(name, port, *behaviours) for name, port in zip(("worker 0", "gateway"), ports, strict=True)]
    with running(*specs) as run:
        run.wait_for("ready")
        before = run.supervisor.pids()
        os.kill(before[pod], signal.SIGSTOP)
        assert run.wait_for("killed", pod).message == f"{pod} hangs, it was stopped by a signal: it is killed"
        run.wait_for("pod_ready", pod, count=2)
        after = run.supervisor.pids()
        assert {name for name in after if after[name] != before[name]} == {pod}


@needs_proc
@pytest.mark.usefixtures("quick_looks")
def test_a_process_whose_heartbeat_ends_is_replaced_and_one_without_any_is_not(tmp_path: Path) -> None:
    ports = free_ports(3)
    specs = [
        light_pod("worker 0", ports[0], f"beats={tmp_path / 'end'}"),
        light_pod("worker 1", ports[1]),
        light_pod("gateway", ports[2], "beats"),
    ]
    with running(*specs) as run:
        run.wait_for("ready")
        before = run.supervisor.pids()
        (tmp_path / "end").touch()
        assert "it has done nothing for" in run.wait_for("killed", "worker 0").message
        (tmp_path / "end").unlink()
        run.wait_for("pod_ready", "worker 0", count=2)
        assert before.items() - run.supervisor.pids().items() == {("worker 0", before["worker 0"])}


def test_a_replica_that_cannot_come_back_does_not_end_the_server(tmp_path: Path) -> None:
    ports = free_ports(3)
    specs = [
        light_pod("worker 0", ports[0]),
        light_pod("worker 1", ports[1], f"fails-again={tmp_path / 'mark'}"),
        light_pod("gateway", ports[2]),
    ]
    with running(*specs) as run:
        run.wait_for("ready")
        os.kill(run.supervisor.pids()["worker 1"], signal.SIGKILL)
        assert "no such file: model.gguf" in run.wait_for("died", count=4).message
        assert is_listening("127.0.0.1", ports[0])
        assert run.error is None


def test_a_command_that_does_not_exist_is_one_line() -> None:
    ports = free_ports(2)
    nobody = PodSpec(name="worker 0", role="worker", command=("/nonexistent",), is_ready=lambda: False)
    with running(nobody, light_pod("gateway", ports[1])) as run:
        run.join()
        assert str(run.error) == "cannot start worker 0: No such file or directory"


def test_killing_the_supervisor_leaves_no_process() -> None:
    ports = free_ports(2)
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_supervisor import light_pod, Supervisor
Supervisor(light_pod("gateway", {ports[1]}), [light_pod("worker 0", {ports[0]}, "deaf")]).run()
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    try:
        assert parent.stderr is not None
        for line in parent.stderr:
            if line == "ready\n":
                break
        children = wait_until(lambda: children_of(parent.pid))
        assert len(children) == 2
    finally:
        parent.kill()
        parent.communicate()
    wait_until(lambda: not any(is_alive(pid) for pid in children))


def children_of(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return [int(child) for child, parent in map(str.split, listed.splitlines()) if int(parent) == pid]
