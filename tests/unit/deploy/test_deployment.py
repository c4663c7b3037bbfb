"""Without these tests, a deployment that no target can run could fail minutes later, with a platform's error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from run_gpt.config import ServeConfig
from run_gpt.deploy import Autoscale, Deployment
from run_gpt.errors import SetupError
from run_gpt.flows.pod import gateway_arguments

KEY = "secret-key-of-the-test"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "Chat"}, "--name Chat: up to 40"),
        ({"name": "a" * 41}, "up to 40"),
        ({"name": "chat-"}, "no hyphen"),
        ({"image": "bad image"}, "--image bad image"),
        ({"gateways": 0}, "--gateways must be at least 1, not 0"),
        ({"cpus": 0.0}, "--cpus must be at least 0.1"),
        ({"memory_gib": 0.1}, "--memory must be at least 0.5"),
        ({"server": ServeConfig(replicas=0)}, "--replicas must be at least 1, not 0"),
        ({"server": ServeConfig(model_name="./mine")}, "MODEL ./mine is on this machine"),
        ({"server": ServeConfig(adapters={"law": "~/law"})}, "--adapter law ~/law is on this machine"),
        ({"server": ServeConfig(model_name="org/unheard-of")}, "give --memory, in GiB"),
        ({"server": ServeConfig(trace_endpoint="localhost:4317")}, "in a container localhost is the container's own"),
        ({"server": ServeConfig(trace_endpoint="https://[::1]:4317")}, "is the container's own: give another host"),
        ({"server": ServeConfig(trace_endpoint="otel.example")}, "--trace-endpoint otel.example: write HOST:PORT"),
        (
            {"server": ServeConfig(replicas=9), "autoscale": Autoscale(least=1, most=8)},
            "--replicas 9: with --autoscale",
        ),
    ],
)
def test_what_no_engine_could_run_is_refused_with_the_option_to_change(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SetupError, match=says):
        Deployment(**{"server": ServeConfig(), **settings})


@pytest.mark.parametrize("text", ["", "3", "4:2", "2:2", "0:3", "1:2:0", "a:b", "1:2:3:4"])
def test_a_range_of_replicas_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(SetupError, match="--autoscale"):
        Autoscale.parse(text)


def test_a_range_of_replicas() -> None:
    assert Autoscale.parse("1:8") == Autoscale(least=1, most=8)
    assert Autoscale.parse("2:3:40") == Autoscale(least=2, most=3, in_flight=40)


def test_name_and_memory_come_from_the_model() -> None:
    assert Deployment(server=ServeConfig()).name == "rungpt-smollm2"
    assert Deployment(server=ServeConfig(model_name="Org/Some_Model.v1"), memory_gib=3).name == "rungpt-some-model-v1"
    small, large = (Deployment(server=ServeConfig(model_name=name)).memory_gib for name in ("smollm2", "mistral-7b"))
    assert 1 < small < 4 < 14 < large < 24


def test_a_certificate_of_this_machine_is_refused() -> None:
    """The containers would not start: its files are not there."""
    with pytest.raises(SetupError, match="end TLS before them"):
        Deployment(server=ServeConfig(tls_cert=Path("chain.pem"), tls_key=Path("key.pem")))


def test_nothing_is_open_to_others_by_accident(keys_file: Path) -> None:
    with pytest.raises(SetupError, match="anyone who reaches the load balancer could use this model: give --api"):
        Deployment(server=ServeConfig()).check_closed("anyone who reaches the load balancer")
    Deployment(server=ServeConfig(), open=True).check_closed("all")
    Deployment(server=ServeConfig(api_key=KEY)).check_closed("all")
    Deployment(server=ServeConfig(api_key_file=keys_file)).check_closed("all")


def test_the_flow_in_a_container_finds_its_executors_by_name_and_holds_no_key(case: tuple[str, Deployment]) -> None:
    deployment = case[1]
    text = deployment.flow("executors.example")
    assert KEY not in text
    flow = yaml.safe_load(text)
    arguments = gateway_arguments(flow)
    assert '{"causal_lm": ["grpc://executors.example:51001"]}' in arguments
    assert "0.0.0.0" in arguments
    doors = flow["gateway"]["uses"].get("with", {})
    assert doors.get("require_key", False) == deployment.server.asks_for_key
    assert doors.get("api_key_file") in (None, "/etc/rungpt/keys/keys")


def test_the_form_of_the_log_reaches_both_containers_through_their_environment() -> None:
    """No program can read a log that is half JSON."""
    for log_format, there in (("text", {}), ("json", {"RUNGPT_LOG_FORMAT": "json"})):
        deployment = Deployment(server=ServeConfig(log_format=cast("Any", log_format)))
        for env in (deployment.gateway_env("x"), deployment.executor_env("x")):
            assert {name: value for name, value in env.items() if "LOG" in name} == there
            assert "log_format" not in env["RUNGPT_FLOW"], "it is no setting of gateway or executor"


def test_a_container_runs_as_many_threads_as_it_has_cores() -> None:
    threads: Callable[[float], str] = lambda cpus: Deployment(server=ServeConfig(), cpus=cpus).executor_env("x")[  # noqa: E731
        "OMP_NUM_THREADS"
    ]
    assert [threads(cpus) for cpus in (0.5, 2, 3.5)] == ["1", "2", "3"]
