"""Without these tests, a container whose model cannot answer could look healthy, or checks could take its cores."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from run_gpt.config import FLOW_VARIABLE, ServeConfig
from run_gpt.flows import render_flow
from run_gpt.flows.ports import free_ports

States = health_pb2.HealthCheckResponse


def check(http_port: int, executor_port: int, *arguments: str) -> tuple[int, str]:
    """Run a check as Docker does, in a container with these ports, and return its exit code and line."""
    config = ServeConfig(grpc_port=free_ports(1)[0], http_port=http_port)
    flow = render_flow(config, executor_address=("executor.invalid", executor_port))
    command = [sys.executable, "-P", "-m", "run_gpt.flows.healthcheck", *arguments]
    env = {**os.environ, FLOW_VARIABLE: flow, "http_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert not done.stderr
    return done.returncode, done.stdout.strip()


@contextmanager
def gateway(port: int, status: int) -> Iterator[None]:
    """Run an HTTP server that answers only /ready, with this status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/ready" else 404)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def executor(port: int, status: int) -> Iterator[None]:
    """Run a gRPC server whose standard health service has this status."""
    servicer = health.HealthServicer()
    servicer.set("", status)
    server = grpc.server(ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("role", [(), ("gateway",)])
def test_a_gateway_is_healthy_while_it_can_answer(role: tuple[str, ...]) -> None:
    http_port, executor_port = free_ports(2)
    with gateway(http_port, 200):
        assert check(http_port, executor_port, *role) == (0, "serving")
    with gateway(http_port, 503):
        assert check(http_port, executor_port, *role) == (1, f"not ready on port {http_port}")


@pytest.mark.parametrize("role", [(), ("executor",)])
def test_an_executor_is_healthy_while_its_health_service_says_so(role: tuple[str, ...]) -> None:
    http_port, executor_port = free_ports(2)
    with executor(executor_port, States.SERVING):
        assert check(http_port, executor_port, *role) == (0, "serving")
    with executor(executor_port, States.NOT_SERVING):
        assert check(http_port, executor_port, *role) == (1, f"not serving on port {executor_port}")


def test_nothing_that_listens_is_not_healthy() -> None:
    http_port, executor_port = free_ports(2)
    assert check(http_port, executor_port, "gateway") == (1, f"nothing listens on port {http_port}")
    assert check(http_port, executor_port) == (1, f"nothing listens on port {executor_port}: the model is loading")


def test_something_else_on_the_executors_port_is_not_healthy() -> None:
    http_port, executor_port = free_ports(2)
    with gateway(executor_port, 200):
        code, line = check(http_port, executor_port, "executor")
    assert code == 1
    assert line.startswith(f"no answer on port {executor_port}: ")


def test_without_a_flow_it_asks_where_rungpt_serve_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    from run_gpt.flows import healthcheck

    assert healthcheck.ports_of(None) == (52000, [51001])
    monkeypatch.setattr(sys, "argv", ["healthcheck", "gateway"])
    monkeypatch.setenv(FLOW_VARIABLE, "nonsense")
    assert healthcheck.main() == 1


def test_a_check_imports_nothing_heavy() -> None:
    """The check runs every few seconds in each container, beside the model."""
    code = (
        "import sys, run_gpt.flows.healthcheck as check; check.executor_problem(1); "
        "print([name for name in ('torch', 'jina', 'docarray', 'transformers', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "[]\n"
