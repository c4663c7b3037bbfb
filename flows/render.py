"""Owns the Flow's YAML: one text from which the worker and gateway processes, and `jina flow`, are started."""

from collections.abc import Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import yaml

from run_gpt.config import (
    API_KEY_VARIABLE,
    EVERY_INTERFACE,
    FLOW_VARIABLE,
    LOOPBACK,
    EngineConfig,
    GatewayConfig,
    ModelConfig,
    ServeConfig,
)
from run_gpt.flows.traces import trace_options

EXECUTOR_NAME = "causal_lm"

_HEADER = """\
# RunGPT as a Jina Flow: a gateway (gRPC and HTTP) and {replicas} replica(s) of the language model.
# Run it with: JINA_OPTOUT_TELEMETRY=1 jina flow --uses FILE
# `rungpt serve` runs the same Flow, and also restarts what dies and drains before it stops.
"""
_KEY_HEADER = f"""\
# The key is not in this file: set {API_KEY_VARIABLE} in the environment. Without a key the gateway does not start.
"""
_SUPERVISED_HEADER = """\
# RunGPT as a Jina Flow whose workers are started, watched and ended by run_gpt.flows.
"""
_APART_HEADER = f"""\
# RunGPT as a Jina Flow whose gateway and executors are started apart from each other, each with this text in
# {FLOW_VARIABLE}: `python -P -m run_gpt.flows.pod gateway` and `... executor`.
"""


def render_flow(
    config: ServeConfig,
    *,
    worker_ports: Sequence[int] | None = None,
    executor_address: tuple[str, int] | None = None,
) -> str:
    """The Flow of a whole server, as YAML; only values that differ from their defaults are written.

    Without more the text is complete: `jina flow --uses FILE` starts gateway and replicas. With `worker_ports` (one
    loopback port for each replica) the executor is `external`: somebody else starts a worker on each of the ports.
    Workers listen on loopback in both forms: only the gateway is a door.

    With `executor_address`, a DNS name and a port, the executor is `external` too, and `config.replicas` says nothing:
    as many serve as the name has addresses. There the gateway listens on every interface unless `config.host` is
    given, since loopback would be its own container's. A key is never in the text, in no form. Raises SetupError for
    a trace endpoint that is none.
    """
    gateway, executor = _gateway(config), _executor(config)
    if worker_ports is not None and executor_address is not None:
        raise ValueError("worker_ports are of this machine, executor_address is of others: give one of them")
    if executor_address is not None:
        header = _APART_HEADER
        gateway["host"] = config.host or EVERY_INTERFACE
        executor |= {"replicas": 1, "host": executor_address[0], "external": True, "port": [executor_address[1]]}
    elif worker_ports is not None:
        header = _SUPERVISED_HEADER
        if len(worker_ports) != config.replicas:
            raise ValueError(f"{config.replicas} replicas need as many worker ports, not {len(worker_ports)}")
        executor |= {"external": True, "port": list(worker_ports)}
    else:
        header = _HEADER.format(replicas=config.replicas)
        # Jina's own value, the folder of the file, reaches the gateway as None for a file in the current folder.
        gateway["extra_search_paths"] = ["."]
        executor["timeout_ready"] = -1  # loading a large model may take longer than Jina's ten minutes
    flow: dict[str, Any] = {"jtype": "Flow"}
    if config.trace_endpoint is not None:
        flow["with"] = trace_options(config.trace_endpoint)
    flow |= {"gateway": gateway, "executors": [executor]}
    if config.api_key is not None:
        header += _KEY_HEADER
    return header + yaml.safe_dump(flow, sort_keys=False, width=120, allow_unicode=True)


def changed_values(config: Any) -> dict[str, Any]:
    """The fields of a configuration dataclass that differ from their defaults, as plain YAML values."""
    changed = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if field.default is MISSING or value != field.default:
            changed[field.name] = str(value) if isinstance(value, Path) else value
    return changed


def _gateway(config: ServeConfig) -> dict[str, Any]:
    values = changed_values(replace(GatewayConfig.of(config), require_key=config.asks_for_key))
    return {
        "uses": _uses("RunGPTGateway", "run_gpt.gateway.gateway", values),
        "host": config.listen_host,
        "port": [config.grpc_port, config.http_port],
        "protocol": ["grpc", "http"],
    }


def _executor(config: ServeConfig) -> dict[str, Any]:
    values = changed_values(ModelConfig.of(config)) | changed_values(EngineConfig.of(config))
    return {
        "name": EXECUTOR_NAME,
        "uses": _uses("CausalLMExecutor", "run_gpt.executors.causal_lm.executor", values),
        "replicas": config.replicas,
        "host": LOOPBACK,
    }


def _uses(jtype: str, module: str, values: dict[str, Any]) -> dict[str, Any]:
    uses: dict[str, Any] = {"jtype": jtype, "py_modules": [module]}
    return uses | {"with": values} if values else uses
