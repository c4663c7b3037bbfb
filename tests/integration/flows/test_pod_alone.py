"""Without these tests, our containers could fail to start, be unreachable for the others, or not report errors."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from test_pod import LIMIT, pod_command, pod_env, toy_uses
from test_supervisor import wait_until

from run_gpt.config import FLOW_VARIABLE, ServeConfig
from run_gpt.flows.ports import answers_ok, free_ports, is_listening
from run_gpt.flows.process import SETUP_ERROR_EXIT
from run_gpt.flows.render import render_flow


def flow_of_containers(executor: str = "rungpt-executor.invalid", **settings: Any) -> dict[str, Any]:
    grpc_port, http_port, worker = free_ports(3)
    config = ServeConfig(host="127.0.0.1", grpc_port=grpc_port, http_port=http_port)
    flow: dict[str, Any] = yaml.safe_load(render_flow(config, executor_address=(executor, worker)))
    flow["gateway"]["uses"], flow["executors"][0]["uses"] = toy_uses(**settings)
    return flow


def start_alone(flow: dict[str, Any] | str | None, *arguments: str) -> "subprocess.Popen[str]":
    text = {} if flow is None else {FLOW_VARIABLE: flow if isinstance(flow, str) else yaml.safe_dump(flow)}
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(pod_command(*arguments), **pipes, text=True, env={**os.environ, **pod_env(), **text})


@contextmanager
def running_alone(flow: dict[str, Any], *arguments: str) -> "Iterator[subprocess.Popen[str]]":
    pod = start_alone(flow, *arguments)
    try:
        yield pod
    finally:
        pod.kill()
        pod.communicate()


def health(port: int) -> int:
    """Return the status of gRPC's health service, asked as Kubernetes does; -1 without an answer."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            return int(health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5).status)
        except grpc.RpcError:
            return -1


def ended(pod: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = pod.communicate(timeout=LIMIT)
    return pod.returncode, out, err


def test_an_executor_of_a_container_is_reached_on_every_interface_and_ends_on_sigterm() -> None:
    flow = flow_of_containers()
    port = flow["executors"][0]["port"][0]
    with running_alone(flow, "executor") as pod:
        wait_until(lambda: health(port) == health_pb2.HealthCheckResponse.SERVING, LIMIT)
        assert is_listening("127.0.0.2", port), "it must not listen on one address only"
        pod.send_signal(signal.SIGTERM)
        assert ended(pod) == (0, "draining for 30 s\n", "")


def test_ctrl_c_in_a_drain_ends_it_at_once() -> None:
    """An executor drains for as long as the Flow's gateway."""
    flow = flow_of_containers(finishes=False)
    flow["gateway"]["uses"]["with"] = {"drain_seconds": 600}
    with running_alone(flow, "executor") as pod:
        wait_until(lambda: health(flow["executors"][0]["port"][0]) == health_pb2.HealthCheckResponse.SERVING, LIMIT)
        pod.send_signal(signal.SIGINT)
        assert pod.stdout is not None
        assert pod.stdout.readline() == "draining for 600 s\n"
        pod.send_signal(signal.SIGINT)
        assert ended(pod) == (128 + signal.SIGINT, "", "")


def test_a_stop_while_it_loads_is_not_waited_for() -> None:
    """By default the first process of a container ignores the signal, and is killed after the grace time."""
    with running_alone(flow_of_containers(loads=True), "executor") as pod:
        assert pod.stdout is not None
        assert pod.stdout.readline() == "loading\n"
        pod.send_signal(signal.SIGTERM)
        assert ended(pod) == (128 + signal.SIGTERM, "", "")


@pytest.mark.parametrize(
    ("settings", "number", "code"), [({"failed": True}, signal.SIGTERM, 1), ({}, signal.SIGSEGV, -signal.SIGSEGV)]
)
def test_what_has_failed_does_not_end_as_if_all_were_well(settings: Any, number: int, code: int) -> None:
    """Such a code makes the platform restart the container; a crashed process must also not hang."""
    flow = flow_of_containers(**settings)
    with running_alone(flow, "executor") as pod:
        wait_until(lambda: health(flow["executors"][0]["port"][0]) == health_pb2.HealthCheckResponse.SERVING, LIMIT)
        pod.send_signal(number)
        assert ended(pod)[0] == code


def test_a_gateway_of_a_container_serves_without_a_supervisor() -> None:
    """The gateway is alive before there is an executor: Kubernetes makes its first check then."""
    flow = flow_of_containers()
    flow["gateway"]["uses"] = {"jtype": "RunGPTGateway", "py_modules": ["run_gpt.gateway.gateway"]}
    grpc_port, http_port = flow["gateway"]["port"]
    with running_alone(flow, "gateway") as pod:
        wait_until(lambda: answers_ok("127.0.0.1", http_port, "/health"), LIMIT)
        assert not answers_ok("127.0.0.1", http_port, "/ready")
        assert health(grpc_port) == health_pb2.HealthCheckResponse.NOT_SERVING
        pod.send_signal(signal.SIGINT)
        assert ended(pod)[0] == 0


def test_what_keeps_a_container_from_starting_is_one_line_in_its_log() -> None:
    assert ended(start_alone(flow_of_containers(fail=True), "executor")) == (
        SETUP_ERROR_EXIT,
        "",
        "rungpt: no such file: model.gguf\n",
    )


@pytest.mark.parametrize(
    ("flow", "said"),
    [
        (None, "rungpt: there is no Flow: give its YAML in the environment variable RUNGPT_FLOW\n"),
        ("", "rungpt: RUNGPT_FLOW is no Flow with a gateway and executors: give it the YAML of one\n"),
    ],
)
def test_a_missing_flow_is_one_line(flow: str | None, said: str) -> None:
    assert ended(start_alone(flow, "gateway")) == (SETUP_ERROR_EXIT, "", said)


def test_the_supervisor_hands_its_own_flow_on_where_the_environment_has_another(monkeypatch: Any) -> None:
    """`rungpt serve` in a container that has RUNGPT_FLOW must not serve that Flow."""
    from run_gpt.flows.server import new_supervisor

    monkeypatch.setenv(FLOW_VARIABLE, json.dumps("another"))
    supervisor = new_supervisor(ServeConfig(), lambda event: None)
    assert all(child.spec.env[FLOW_VARIABLE] is None for child in supervisor._children)


def test_as_json_what_a_container_says_is_json_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """No supervisor reads the container's output for a log collector: the log must still say why it does not start."""
    monkeypatch.setenv("RUNGPT_LOG_FORMAT", "json")
    code, out, err = ended(start_alone(flow_of_containers(fail=True), "executor"))
    lines = [json.loads(line) for line in err.splitlines()]
    assert (code, out) == (SETUP_ERROR_EXIT, "")
    assert {line["pod"] for line in lines} == {"executor"}
    assert (lines[-1]["level"], lines[-1]["message"]) == ("CRITICAL", "rungpt: no such file: model.gguf")


def test_a_form_of_the_log_that_there_is_not_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNGPT_LOG_FORMAT", "xml")
    code, _, err = ended(start_alone(flow_of_containers(), "executor"))
    assert (code, err) == (SETUP_ERROR_EXIT, "rungpt: RUNGPT_LOG_FORMAT: xml: give one of text, json\n")
