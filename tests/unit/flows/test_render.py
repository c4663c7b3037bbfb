"""Without these tests, `--dry-run` could print a Flow that serves with other settings than the user's."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from run_gpt.config import EngineConfig, GatewayConfig, ModelConfig, ServeConfig
from run_gpt.errors import SetupError
from run_gpt.flows.pod import executor_arguments, gateway_arguments
from run_gpt.flows.reading import read_flow
from run_gpt.flows.render import render_flow


def test_defaults_are_left_out() -> None:
    flow = yaml.safe_load(render_flow(ServeConfig()))
    assert flow["gateway"] == {
        "uses": {"jtype": "RunGPTGateway", "py_modules": ["run_gpt.gateway.gateway"]},
        "host": "127.0.0.1",
        "port": [51000, 52000],
        "protocol": ["grpc", "http"],
        "extra_search_paths": ["."],
    }
    assert flow["executors"] == [
        {
            "name": "causal_lm",
            "uses": {"jtype": "CausalLMExecutor", "py_modules": ["run_gpt.executors.causal_lm.executor"]},
            "replicas": 1,
            "host": "127.0.0.1",
            "timeout_ready": -1,
        }
    ]


def test_every_setting_comes_back_from_the_yaml_as_it_was() -> None:
    config = ServeConfig(
        model_name="größe: # 'x'",
        device_map={"model.layers.0": 0, "lm_head": "cpu"},
        max_memory={"cpu": "8GB", "0": 1000},
        tensor_parallel=2,
        compile=True,
        precision="fp16",
        trust_remote_code=True,
        cache_dir=Path("/tmp/models"),
        max_running=3,
        max_context=512,
        max_cache_tokens=4096,
        reuse_prefixes=False,
        speculate=False,
        drain_seconds=1.5,
    )
    flow = yaml.safe_load(render_flow(config))
    settings = flow["executors"][0]["uses"]["with"]
    model = {f.name: settings.pop(f.name) for f in fields(ModelConfig) if f.name in settings}
    model["cache_dir"] = Path(model["cache_dir"])
    assert ModelConfig(**model) == ModelConfig.of(config)
    assert EngineConfig(**settings) == EngineConfig.of(config)
    assert GatewayConfig(**flow["gateway"]["uses"]["with"]) == GatewayConfig.of(config)


def test_ports_and_replicas_are_the_configured_ones() -> None:
    flow = yaml.safe_load(render_flow(ServeConfig(host="0.0.0.0", grpc_port=1234, http_port=5678, replicas=2)))
    assert (flow["gateway"]["host"], flow["gateway"]["port"]) == ("0.0.0.0", [1234, 5678])
    assert flow["executors"][0]["replicas"] == 2
    assert flow["executors"][0]["host"] == "127.0.0.1", "workers listen on loopback only"


def test_supervised_workers_are_external_and_have_their_ports() -> None:
    executor = yaml.safe_load(render_flow(ServeConfig(replicas=2), worker_ports=[4001, 4002]))["executors"][0]
    assert executor["external"] is True
    assert executor["port"] == [4001, 4002]
    with pytest.raises(ValueError, match="2 replicas need as many worker ports, not 1"):
        render_flow(ServeConfig(replicas=2), worker_ports=[4001])


def test_a_flow_for_containers_names_the_executors_once_and_opens_the_gateway_to_others() -> None:
    flow = yaml.safe_load(
        render_flow(ServeConfig(replicas=3, max_running=3), executor_address=("rungpt-executor", 51001))
    )
    assert flow["gateway"]["host"] == "0.0.0.0", "loopback is the container's own: nobody would reach the gateway"
    assert "extra_search_paths" not in flow["gateway"]
    assert '{"causal_lm": ["grpc://rungpt-executor:51001"]}' in gateway_arguments(flow)
    executor = executor_arguments(flow, 0, "0.0.0.0")
    assert executor[executor.index("--host") + 1] == "0.0.0.0"
    assert executor[executor.index("--port") + 1] == "51001"
    with pytest.raises(SetupError, match="executor 1: the Flow has ports for 1"):
        executor_arguments(flow, 1)
    with pytest.raises(ValueError, match="give one of them"):
        render_flow(ServeConfig(), executor_address=("a", 1), worker_ports=[1])


def test_a_flow_for_containers_keeps_the_host_and_requires_the_key_without_containing_it() -> None:
    """A gateway whose Secret is missing must not start without a key."""
    config = ServeConfig(host="127.0.0.1", api_key="sesame-sesame")
    text = render_flow(config, executor_address=("e", 51001))
    gateway = yaml.safe_load(text)["gateway"]
    assert "sesame" not in text
    assert (gateway["host"], gateway["uses"]["with"]) == ("127.0.0.1", {"require_key": True})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda flow: "a: [", "is no YAML: while parsing"),
        (lambda flow: "hello", "is no Flow with a gateway and executors"),
        (lambda flow: "", "is no Flow with a gateway and executors"),
        (lambda flow: flow | {"executors": []}, "is no Flow with a gateway and executors"),
        (lambda flow: flow | {"executors": flow["executors"] * 2}, "two executors are called 'causal_lm'"),
        (
            lambda flow: flow | {"executors": [*flow["executors"], {"name": "b"}]},
            "the executor needs 'uses', a mapping",
        ),
        (lambda flow: flow | {"gateway": None}, "the gateway needs 'uses', a mapping"),
        (lambda flow: flow | {"gateway": flow["gateway"] | {"port": 51000}}, "the gateway needs 'port', a list"),
        (lambda flow: yaml.safe_load(render_flow(ServeConfig())), "the executor needs 'port', a list"),
    ],
)
def test_a_flow_that_pods_cannot_be_started_from_is_one_line(change: Any, said: str) -> None:
    changed = change(yaml.safe_load(render_flow(ServeConfig(), executor_address=("e", 51001))))
    with pytest.raises(SetupError) as raised:
        read_flow(changed if isinstance(changed, str) else yaml.safe_dump(changed))
    assert raised.value.message.startswith("RUNGPT_FLOW")
    assert said in raised.value.message
    assert "\n" not in raised.value.message


def test_pods_get_what_the_flow_says() -> None:
    flow = yaml.safe_load(render_flow(ServeConfig(replicas=2, max_running=3), worker_ports=[4001, 4002]))
    gateway, executor = gateway_arguments(flow), executor_arguments(flow, 1)
    assert gateway[gateway.index("--port") :][:3] == ["--port", "51000", "52000"]
    assert '{"causal_lm": ["grpc://127.0.0.1:4001", "grpc://127.0.0.1:4002"]}' in gateway
    assert executor[executor.index("--port") + 1] == "4002"
    assert '"with": {"max_running": 3}' in executor[executor.index("--uses") + 1]
