"""Without these tests processor time could be attributed to the wrong process, or a remote server be an error."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from run_gpt.bench import processes
from run_gpt.bench.load import Bounds, Level
from run_gpt.bench.online import Plan, measure
from run_gpt.bench.results import Results
from run_gpt.bench.workload import Lengths, WorkloadConfig
from run_gpt.client.endpoint import Endpoint
from run_gpt.errors import SetupError

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc")

REQUESTS, TOKENS = 4, 5
OWN_SECONDS, WORKER_SECONDS = 0.06, 0.15
WORKER = f"""
import sys, time
for line in sys.stdin:
    end = time.process_time() + {WORKER_SECONDS}
    while time.process_time() < end:
        pass
    print(flush=True)
"""
SERVER = f"""
import json, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
worker = subprocess.Popen([sys.executable, sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, data):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        self.answer(b'{{"data": [{{"id": "burning"}}]}}')
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        end = time.process_time() + {OWN_SECONDS}
        while time.process_time() < end:
            pass
        worker.stdin.write("burn\\n"), worker.stdin.flush(), worker.stdout.readline()
        usage = {{"prompt_tokens": 1, "completion_tokens": {TOKENS}}}
        choice = {{"message": {{"content": "a"}}, "finish_reason": "stop"}}
        self.answer(json.dumps({{"choices": [choice], "usage": usage}}).encode())
    def log_message(self, *arguments):
        pass

server = HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@pytest.fixture
def burning(tmp_path: Path) -> Iterator[tuple[Endpoint, int]]:
    """Yield a server that takes a known processor time, itself and in a child, and its process id."""
    for name, text in (("server.py", SERVER), ("worker.py", WORKER)):
        (tmp_path / name).write_text(text)
    command = [sys.executable, str(tmp_path / "server.py"), str(tmp_path / "worker.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Endpoint.parse(f"http://127.0.0.1:{int(process.stdout.readline())}"), process.pid
        finally:
            process.kill()


async def measured(endpoint: Endpoint, pid: int | None) -> Results:
    workload = WorkloadConfig(Lengths("fixed", 5), Lengths("fixed", TOKENS))
    level = Level("closed", 1, streamed=False)
    plan = Plan(endpoint, (level,), workload, bounds=Bounds(REQUESTS), warmup=0, server_pid=pid)
    return await measure(plan, None, lambda run: None)


@pytest.mark.alone
@pytest.mark.parametrize("named", [True, False])
async def test_each_process_has_its_own_time(burning: tuple[Endpoint, int], named: bool) -> None:
    """Each process has its own time, for a named process as for one found by its port."""
    endpoint, pid = burning
    [summary] = (await measured(endpoint, pid if named else None)).summaries
    per_token = {"server.py": OWN_SECONDS * 1e3 / TOKENS, "worker.py": WORKER_SECONDS * 1e3 / TOKENS}
    assert summary.server_cpu == pytest.approx(per_token, rel=0.35)
    assert summary.server_cpu_ms_per_token == pytest.approx(sum(per_token.values()), rel=0.35)
    assert summary.client_cpu_ms_per_token is not None


def test_processes_of_another_machine_are_not_searched() -> None:
    assert processes.find(Endpoint.parse("http://192.0.2.1:52000")) is None
    assert processes.find(Endpoint.parse("http://example.com:52000")) is None


def test_a_port_that_nobody_listens_on_has_no_process() -> None:
    assert processes.find(Endpoint.parse("http://127.0.0.1:1")) is None


def test_a_process_that_is_not_there_is_an_error() -> None:
    with pytest.raises(SetupError, match="--server-pid 999999999: there is no such process"):
        processes.find(Endpoint.parse("http://127.0.0.1:1"), 999_999_999)


def test_without_proc_there_is_no_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All else is measured, as on macOS."""
    monkeypatch.setattr(processes, "PROC", tmp_path / "none")
    assert processes.find(Endpoint.parse("http://127.0.0.1:52000")) is None
    assert processes.find(Endpoint.parse("http://127.0.0.1:52000"), 1) is None


def test_a_server_ends_where_something_else_has_started_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Otherwise two servers started by one script would count as one."""
    tree = {
        1: (0, "bash", "bash"),
        2: (1, "python3.11", "python\0start_them_all.py"),
        3: (2, "python3.11", "python\0rungpt\0serve"),
        4: (3, "python3.11", "python\0-m\0run_gpt.flows.pod\0gateway"),
        5: (1, "python3.12", "python3\0-m\0other.server"),
        6: (5, "python3.12", "python3\0-c\0worker"),
    }
    for pid, (parent, program, command) in tree.items():
        (folder := tmp_path / str(pid)).mkdir()
        (folder / "stat").write_text(f"{pid} (a) b) S {parent} 0 0 0 0 0 0 0 0 0 100 50 0 0")
        (folder / "cmdline").write_text(command)
        (folder / "comm").write_text("comm")
        (folder / "exe").symlink_to(f"/usr/bin/{program}")
    monkeypatch.setattr(processes, "PROC", tmp_path)
    assert [processes._root_of(pid) for pid in (4, 3, 6, 5)] == [3, 3, 5, 5]
    assert processes.ServerProcesses(3).since({3: 0.0, 4: 1.0}).keys() == {"gateway", "supervisor"}


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("/venv/bin/python\0-P\0-m\0run_gpt.flows.pod\0executor\x001", "executor 1"),
        ("/venv/bin/python\0-P\0-m\0run_gpt.flows.pod\0gateway", "gateway"),
        ("/venv/bin/python\0/venv/bin/rungpt\0serve\0smollm2", "supervisor"),
        ("python3\0-m\0run_gpt.cli\0serve", "supervisor"),
        ("python3.11\0-m\0vllm.entrypoints.openai.api_server\0--model\0m", "vllm.entrypoints.openai.api_server"),
        ("/opt/llama-server\0-m\0file.gguf", "llama-server"),
        ("VLLM::EngineCore", "VLLM::EngineCore"),
        ("python3\0-c\0from multiprocessing import x", "comm"),
        ("", "comm"),
    ],
)
def test_processes_are_named_by_their_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, name: str
) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cmdline").write_text(command)
    (tmp_path / "7" / "comm").write_text("comm\n")
    monkeypatch.setattr(processes, "PROC", tmp_path)
    assert processes._name(7) == name
