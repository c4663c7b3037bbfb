"""Owns the Flow's YAML: one text that starts the worker and gateway processes, and `jina flow`."""

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
    AdminConfig,
    EngineConfig,
    GatewayConfig,
    HostConfig,
    ModelConfig,
    ServeConfig,
    ServedModel,
    check_bounds,
)
from run_gpt.errors import SetupError
from run_gpt.flows.traces import trace_options

EXECUTOR_NAME = "causal_lm"
"""Name of the executor in a Flow with one model; with several models `causal_lm_0`, `causal_lm_1`, ..."""

_HEADER = """\
# RunGPT as a Jina Flow: a gateway (gRPC and HTTP) and {models}.
# Run it with: JINA_OPTOUT_TELEMETRY=1 jina flow --uses FILE
# `rungpt serve` runs the same Flow, and also restarts processes that end, and drains before it stops.
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
    """Return the Flow of a whole server, as YAML; only values that differ from their defaults are written.

    It has an executor for each model. By default the text is complete: `jina flow --uses FILE` starts gateway and
    replicas. With `worker_ports` (one loopback port for each replica, those of the first model first) the executors are
    `external`: the caller starts a worker on each of the ports. Workers listen on loopback in both forms: only the
    gateway is an endpoint for clients.

    With `executor_address`, a DNS name and a port, the executor is `external` too, and its `replicas` have no meaning:
    the name has an address for each replica; for one model only. Then the gateway listens on every interface unless
    `config.host` is given, since loopback would be its own container's. No form of the text contains a key.

    Raises SetupError for models that `check_models` refuses, for several models at one address, and for an invalid
    trace endpoint.
    """
    check_models(config)
    if worker_ports is not None and executor_address is not None:
        raise ValueError("worker_ports are of this machine, executor_address is of others: give one of them")
    gateway, executors = _gateway(config), _executors(config)
    if executor_address is not None:
        header = _APART_HEADER
        gateway["host"] = config.host or EVERY_INTERFACE
        _put_apart(executors, executor_address)
    elif worker_ports is not None:
        header = _SUPERVISED_HEADER
        _put_on_ports(executors, worker_ports)
    else:
        header = _HEADER.format(models=_models_text(config))
        # Jina's own value, the folder of the file, reaches the gateway as None for a file in the current folder.
        gateway["extra_search_paths"] = ["."]
        for executor in executors:
            executor["timeout_ready"] = -1  # loading a large model may take longer than Jina's ten minutes
    flow: dict[str, Any] = {"jtype": "Flow"}
    if config.trace_endpoint is not None:
        flow["with"] = trace_options(config.trace_endpoint)
    flow |= {"gateway": gateway, "executors": executors}
    if config.api_key is not None:
        header += _KEY_HEADER
    return header + yaml.safe_dump(flow, sort_keys=False, width=120, allow_unicode=True)


def check_models(config: ServeConfig) -> None:
    """Raise SetupError for models that no server can have: set in two places, or with impossible numbers."""
    if config.models and (own := changed_values(ServedModel.of(config))):
        raise SetupError(
            f"a server with `models` has no model beside them: leave out {', '.join(own)}, or set it for each of them"
        )
    if config.strict_fields and config.lenient_fields:
        raise SetupError("--strict-fields and --lenient-fields say the opposite: leave one of them out")
    check_bounds(GatewayConfig.of(config))
    budget = config.memory_budget
    for model in config.served:
        name = f"{model.short_name}: " if len(config.served) > 1 else ""
        check_bounds(model, name)
        if model.unload_after is not None and model.unload_after <= 0:
            raise SetupError(f"{name}unload_after must be more than 0 seconds, not {model.unload_after:g}")
        if budget is not None and model.memory is not None and model.replicas * model.memory > budget:
            raise SetupError(
                f"{name}{model.replicas} x {model.memory} bytes of memory are more than the memory budget of {budget}: "
                "it could never be loaded"
            )
    early = sum(model.replicas * (model.memory or 0) for model in config.served if model.preload)
    if budget is not None and early > budget:
        raise SetupError(
            f"the models that are loaded at the start take {early} bytes of memory, more than the memory budget of "
            f"{budget}: set preload: false for some of them"
        )


def executor_settings(model: ServedModel, config: ServeConfig) -> dict[str, Any]:
    """Return the settings of an executor of this server, for its `with`."""
    parts = (ModelConfig.of(model), EngineConfig.of(model), HostConfig.of(model), AdminConfig.of(config))
    return {name: value for part in parts for name, value in changed_values(part).items()}


def changed_values(config: Any) -> dict[str, Any]:
    """Return the fields of a configuration dataclass that differ from their defaults, as plain YAML values."""
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


def _executors(config: ServeConfig) -> list[dict[str, Any]]:
    models = config.served
    executors = [
        {
            "name": EXECUTOR_NAME if len(models) == 1 else f"{EXECUTOR_NAME}_{index}",
            "uses": _uses("CausalLMExecutor", "run_gpt.executors.causal_lm.executor", executor_settings(model, config)),
            "replicas": model.replicas,
            "host": LOOPBACK,
        }
        for index, model in enumerate(models)
    ]
    for executor in executors[1:]:
        executor["needs"] = "gateway"  # otherwise Jina would send it the answer of the executor before it
    return executors


def _put_on_ports(executors: list[dict[str, Any]], ports: Sequence[int]) -> None:
    replicas = sum(executor["replicas"] for executor in executors)
    if len(ports) != replicas:
        raise ValueError(f"{replicas} replicas need as many worker ports, not {len(ports)}")
    left = list(ports)
    for executor in executors:
        own, left = left[: executor["replicas"]], left[executor["replicas"] :]
        executor |= {"external": True, "port": own}


def _put_apart(executors: list[dict[str, Any]], address: tuple[str, int]) -> None:
    if len(executors) > 1:
        raise SetupError(f"executors at one address have one model, not {len(executors)}: make a Flow for each model")
    executors[0] |= {"replicas": 1, "host": address[0], "external": True, "port": [address[1]]}


def _models_text(config: ServeConfig) -> str:
    if len(config.served) > 1:
        return f"{len(config.served)} language models"
    return f"{config.served[0].replicas} replica(s) of the language model"


def _uses(jtype: str, module: str, values: dict[str, Any]) -> dict[str, Any]:
    uses: dict[str, Any] = {"jtype": jtype, "py_modules": [module]}
    return uses | {"with": values} if values else uses
