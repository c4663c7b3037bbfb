"""Without these tests, Jina's own start and stop could show: tracebacks for a bad setting, orphans, lost processes."""

import functools
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from test_supervisor import is_alive, running, wait_until

from run_gpt.config import ServeConfig, ServedModel
from run_gpt.flows.pod import executor_arguments, gateway_arguments
from run_gpt.flows.ports import answers_ok, free_ports, is_listening
from run_gpt.flows.process import SETUP_ERROR_EXIT, PodSpec
from run_gpt.flows.render import render_flow

LIMIT = 60.0


def toy_flow(models: int = 1, **settings: Any) -> dict[str, Any]:
    grpc, http, *workers = free_ports(2 + models)
    config = ServeConfig(grpc_port=grpc, http_port=http, models=(ServedModel(),) * models)
    return with_toys(render_flow(config, worker_ports=workers), **settings)


def with_toys(text: str, **settings: Any) -> dict[str, Any]:
    """Return the Flow with a gateway and executors that load nothing."""
    flow: dict[str, Any] = yaml.safe_load(text)
    for executor in flow["executors"]:
        flow["gateway"]["uses"], executor["uses"] = toy_uses(**settings)
    return flow


def toy_uses(**settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    module = {"py_modules": ["toy_flow"]}
    return {"jtype": "ToyGateway", **module}, {"jtype": "ToyExecutor", **module, "with": settings}


def pod_command(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", "run_gpt.flows.pod", *arguments)


def pod_env() -> dict[str, str]:
    return {"PYTHONPATH": str(Path(__file__).parent), "PYTHONUNBUFFERED": "1"}


def start_pod(flow: dict[str, Any], *arguments: str) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    env = {**os.environ, **pod_env()}
    pod = subprocess.Popen(pod_command(*arguments), **pipes, text=True, env=env, start_new_session=True)
    assert pod.stdin is not None
    pod.stdin.write(json.dumps(yaml.safe_dump(flow)) + "\n")
    pod.stdin.flush()
    return pod


def test_an_executor_that_cannot_start_says_why_in_one_line() -> None:
    pod = start_pod(toy_flow(fail=True), "executor", "0")
    assert pod.stdout is not None
    out = pod.stdout.read()  # stdin stays open: its end would end the pod
    pod.wait(LIMIT)
    assert pod.returncode == SETUP_ERROR_EXIT
    assert out == 'rungpt-setup-error {"type": "ModelLoadError", "message": "no such file: model.gguf"}\n'


def test_a_pod_whose_parent_has_ended_ends_itself() -> None:
    flow = toy_flow()
    pod = start_pod(flow, "executor", "0")
    try:
        wait_until(lambda: is_listening("127.0.0.1", flow["executors"][0]["port"][0]), LIMIT)
        assert pod.stdin is not None
        pod.stdin.close()
        pod.wait(LIMIT)
        assert pod.returncode == 0
    finally:
        pod.kill()


def test_a_jina_flow_starts_restarts_and_stops_under_the_supervisor(tmp_path: Path) -> None:
    """Its user may have a home folder that cannot be written, as many services and containers do."""
    flow = toy_flow()
    stdin = json.dumps(yaml.safe_dump(flow))
    env = pod_env() | {"HOME": "/proc/none", "RUNGPT_CACHE": str(tmp_path)}
    port, http = flow["executors"][0]["port"][0], flow["gateway"]["port"][1]
    spec = functools.partial(PodSpec, stdin=stdin, env=env)
    specs = [
        spec(
            name="worker 0",
            role="worker",
            command=pod_command("executor", "0"),
            is_ready=functools.partial(is_listening, "127.0.0.1", port),
        ),
        spec(
            name="gateway",
            role="gateway",
            command=pod_command("gateway"),
            is_ready=functools.partial(answers_ok, "127.0.0.1", http, "/ready"),
        ),
    ]
    with running(*specs) as run:
        run.wait_for("ready", limit=LIMIT)
        os.kill(run.supervisor.pids()["worker 0"], signal.SIGKILL)
        run.wait_for("pod_ready", "worker 0", count=2, limit=LIMIT)
        pids = run.supervisor.pids()
        assert answers_ok("127.0.0.1", http, "/ready")
        run.supervisor.request_stop()
        run.join()
        assert not any(is_alive(pid) for pid in pids.values())
        assert "killed" not in [event.kind for event in run.events]


@pytest.fixture
def jina_flow() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Jina's warnings about itself are not ours to fix
        import run_gpt.process._jina  # noqa: F401, I001  (before jina)
        from jina import Flow

        yield Flow


@pytest.mark.parametrize("models", [1, 2, 3])
def test_jina_reads_the_flow_as_the_pods_do(
    models: int, jina_flow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`rungpt serve` and `jina flow --uses` must be the same Flow: Jina's own arguments for it equal ours."""
    from jina.parsers import set_gateway_parser, set_pod_parser

    monkeypatch.syspath_prepend(Path(__file__).parent)
    flow, file = toy_flow(models), tmp_path / "flow.yml"
    file.write_text(yaml.safe_dump(flow, sort_keys=False))
    nodes = jina_flow.load_config(str(file)).build()._deployment_nodes
    last = flow["executors"][-1]["name"]
    gateway, worker = (vars(nodes[name].pod_args["pods"][0][0]) for name in ("gateway", last))
    ours = vars(set_gateway_parser().parse_args(gateway_arguments(flow)))
    assert json.loads(ours.pop("graph_description")) == json.loads(gateway["graph_description"])
    for name in ("uses", "port", "protocol", "deployments_addresses", "runtime_cls", "host", "timeout_send"):
        assert ours[name] == gateway[name]
    ours = vars(set_pod_parser().parse_args(executor_arguments(flow, models - 1)))
    ours["host"] = ours["host"][0]
    for name in ("name", "uses", "port", "protocol", "runtime_cls", "host", "shards", "allow_concurrent"):
        assert ours[name] == worker[name]


@pytest.mark.parametrize("models", [(), (ServedModel(), ServedModel(replicas=2))], ids=["one", "two"])
def test_the_dry_run_runs_with_jinas_own_command(models: tuple[ServedModel, ...], tmp_path: Path) -> None:
    grpc, http = free_ports(2)
    flow = with_toys(render_flow(ServeConfig(grpc_port=grpc, http_port=http, models=models)))
    (tmp_path / "flow.yml").write_text(yaml.safe_dump(flow, sort_keys=False))
    command = (sys.executable, "-m", "jina", "flow", "--uses", "flow.yml")
    env = {**os.environ, **pod_env(), "JINA_OPTOUT_TELEMETRY": "1"}
    with (tmp_path / "log").open("w") as log:
        jina = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: answers_ok("127.0.0.1", http, "/ready") or jina.poll() is not None, LIMIT)
        assert jina.poll() is None, (tmp_path / "log").read_text()
        told = httpx.get(f"http://127.0.0.1:{http}/ready").json()
        replicas = [(executor["name"], executor["replicas"]) for executor in flow["executors"]]
        assert [(name, len(addresses)) for name, addresses in told.items()] == replicas
    finally:
        os.killpg(jina.pid, signal.SIGKILL)
        jina.wait()


def test_jina_accepts_the_dry_run(jina_flow: Any, tmp_path: Path) -> None:
    file = tmp_path / "flow.yml"
    file.write_text(render_flow(ServeConfig(model_name="smollm2", replicas=2, max_running=4)))
    flow = jina_flow.load_config(str(file)).build()
    assert flow.port == [51000, 52000]
    assert len(flow._deployment_nodes["causal_lm"].pod_args["pods"][0]) == 2
