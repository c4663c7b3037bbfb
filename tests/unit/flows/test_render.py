"""Without these `--dry-run` would print a Flow that serves with other settings than the user's."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from run_gpt.config import EngineConfig, GatewayConfig, ModelConfig, ServeConfig
from run_gpt.flows.pod import executor_arguments, gateway_arguments
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


def test_doors_and_replicas_are_the_configured_ones() -> None:
    flow = yaml.safe_load(render_flow(ServeConfig(host="0.0.0.0", grpc_port=1234, http_port=5678, replicas=2)))
    assert (flow["gateway"]["host"], flow["gateway"]["port"]) == ("0.0.0.0", [1234, 5678])
    assert flow["executors"][0]["replicas"] == 2
    assert flow["executors"][0]["host"] == "127.0.0.1", "a worker is not a door, whatever the host of the server"


def test_supervised_workers_are_external_and_have_their_ports() -> None:
    executor = yaml.safe_load(render_flow(ServeConfig(replicas=2), worker_ports=[4001, 4002]))["executors"][0]
    assert executor["external"] is True
    assert executor["port"] == [4001, 4002]
    with pytest.raises(ValueError, match="2 replicas need as many worker ports, not 1"):
        render_flow(ServeConfig(replicas=2), worker_ports=[4001])


def test_pods_get_what_the_flow_says() -> None:
    flow = yaml.safe_load(render_flow(ServeConfig(replicas=2, max_running=3), worker_ports=[4001, 4002]))
    gateway, executor = gateway_arguments(flow), executor_arguments(flow, 1)
    assert gateway[gateway.index("--port") :][:3] == ["--port", "51000", "52000"]
    assert '{"causal_lm": ["grpc://127.0.0.1:4001", "grpc://127.0.0.1:4002"]}' in gateway
    assert executor[executor.index("--port") + 1] == "4002"
    assert '"with": {"max_running": 3}' in executor[executor.index("--uses") + 1]
