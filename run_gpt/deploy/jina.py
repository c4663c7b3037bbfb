"""Owns the target Jina Cloud: the Flow with its `jcloud` blocks, and the check of options that it cannot support."""

import hashlib
import hmac
import math
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from types import ModuleType
from typing import Any

import yaml

from run_gpt.config import API_KEY_VARIABLE, EXECUTOR_TOKEN_VARIABLE, FLOW_VARIABLE, GatewayConfig, ServedModel
from run_gpt.deploy.deployment import GATEWAY_CPUS, GATEWAY_MEMORY_GIB, GRPC_PORT, HTTP_PORT, Deployment
from run_gpt.deploy.target import Endpoints, Phase, Report, Status, option
from run_gpt.errors import SetupError
from run_gpt.flows.render import EXECUTOR_NAME, changed_values, executor_settings
from run_gpt.flows.traces import trace_options

CAPACITIES = ("spot", "on-demand")
INSTANCES = {
    "C1": (0.1, 0.2, 0),
    "C2": (0.5, 1, 0),
    "C3": (1, 2, 0),
    "C4": (2, 4, 0),
    "C5": (4, 8, 0),
    "C6": (8, 16, 0),
    "C7": (16, 32, 0),
    "C8": (32, 64, 0),
    "G1": (math.inf, 14, 1),
    "G2": (math.inf, 14, 1),
    "G3": (math.inf, 24, 2),
    "G4": (math.inf, 56, 4),
}
"""Cores, memory in GB and GPUs by instance. Jina Cloud does not state the cores of those with a GPU.

The GPU of G1 is shared with others.
"""
START_SECONDS = 1800
"""Seconds that a deployment gets until it serves, including the download of a large model."""

_FILE = "flow.yml"
_KEY = f"${{{{ ENV.{API_KEY_VARIABLE} }}}}"
"""Placeholder for the key in the file; jcloud's own command replaces it too."""
_TOKEN = f"${{{{ ENV.{EXECUTOR_TOKEN_VARIABLE} }}}}"
_HEADER = """\
# RunGPT as a Jina Flow on Jina Cloud, as `rungpt deploy --cloud jina` pushes it.
# Its images are those of jcloud/Dockerfile.
"""
_KEY_HEADER = f"""\
# The key is not in this file: it is taken from {API_KEY_VARIABLE} in the environment when it is pushed. So is the
# executors' token, from {EXECUTOR_TOKEN_VARIABLE}; `rungpt deploy` makes it of the key.
"""
_PHASES: dict[str, Phase] = {"Serving": "serving", "Failed": "failed", "Paused": "stopped", "Deleted": "stopped"}


@dataclass(frozen=True, kw_only=True)
class JinaCloud:
    """Deployments on Jina Cloud, in the account of `jcloud login` or $JINA_AUTH_TOKEN. Raises SetupError."""

    instance: str = option("", "Each replica's, such as C5 or G2; default: the least with --cpus, --memory and --gpus.")
    capacity: str = option("spot", "spot, which costs less and may be taken away at any time, or on-demand.")

    def __post_init__(self) -> None:
        if self.instance and self.instance not in INSTANCES:
            raise SetupError(f"--instance {self.instance}: Jina Cloud has {', '.join(INSTANCES)}")
        if self.capacity not in CAPACITIES:
            raise SetupError(f"--capacity {self.capacity}: give one of {', '.join(CAPACITIES)}")

    def render(self, deployment: Deployment) -> dict[str, str]:
        """Return the Flow's YAML, as flow.yml, without the key. Raises SetupError."""
        header = _HEADER + (_KEY_HEADER if deployment.server.asks_for_key else "")
        return {_FILE: header + _yaml(self._flow(deployment))}

    def deploy(self, deployment: Deployment, report: Report) -> Endpoints:
        """Push the Flow, or update the one with this name, and wait until it serves. Raises SetupError."""
        flow, key = self._flow(deployment), deployment.server.api_key
        if "/" not in deployment.image:
            raise SetupError(
                f"--image {deployment.image}: Jina Cloud pulls images from a registry: build and push them as "
                "jcloud/README.md shows, and give --image ACCOUNT/NAME:TAG"
            )
        if deployment.server.asks_for_key:
            if key is None:
                raise SetupError(f"the gateway must have a key: set {API_KEY_VARIABLE}")
            flow["gateway"]["env"][API_KEY_VARIABLE] = key
            token = _token(deployment.name, key)
            for pod in (flow["gateway"], *flow["executors"]):
                pod["env"][EXECUTOR_TOKEN_VARIABLE] = token
        return _endpoints(_client().deploy(deployment.name, _yaml(flow), START_SECONDS, report))

    def status(self, name: str) -> Status:
        """Return Jina Cloud's status of it, which does not include the number of ready replicas."""
        client = _client()
        answer = client.status(name)
        executors = (answer.get("spec") or {}).get("executors") or [{}]
        return Status(
            name=name,
            phase=_PHASES.get(client.phase_of(answer), "starting"),
            wanted=executors[0].get("replicas"),
            endpoints=_endpoints(client.endpoints_of(answer)),
            notes=tuple(client.reasons_of(answer)),
        )

    def logs(self, name: str, *, follow: bool, lines: int) -> Iterator[str]:
        """Yield the last lines of each container, each prefixed with the container's name."""
        if follow:
            raise SetupError("Jina Cloud gives the logs so far only: leave out --follow")
        for pod, text in _client().logs(name, EXECUTOR_NAME).items():
            yield from (f"{pod} | {line}" for line in text.splitlines()[-lines:])

    def scale(self, name: str, replicas: int, report: Report) -> None:
        """Change the number of executors, and wait until it serves again. Raises SetupError."""
        if replicas < 1:
            raise SetupError(f"Jina Cloud runs at least 1 replica: `rungpt deploy remove {name} --cloud jina` ends all")
        _client().scale(name, EXECUTOR_NAME, replicas, START_SECONDS, report)

    def remove(self, name: str, report: Report) -> None:
        """Delete the Flow, or all of this name if there are several; returns when it is deleted. Raises SetupError."""
        _client().remove(name, report)

    def _flow(self, deployment: Deployment) -> dict[str, Any]:
        _check(deployment)
        return {
            "jtype": "Flow",
            "jcloud": {
                "version": version("jina"),
                "docarray": version("docarray"),
                "name": deployment.name,
                "labels": {"app": "rungpt"},
            },
            "gateway": self._gateway(deployment),
            "executors": [self._executor(deployment)],
        }

    def _gateway(self, deployment: Deployment) -> dict[str, Any]:
        server = deployment.server
        gateway = replace(GatewayConfig.of(server), require_key=server.asks_for_key)
        resources = {"cpu": GATEWAY_CPUS, "memory": _gigabytes(GATEWAY_MEMORY_GIB), "capacity": self.capacity}
        return {
            "uses": _image(deployment, "gateway"),
            **_uses_with(changed_values(gateway)),
            "env": _without_flow(deployment.gateway_env(EXECUTOR_NAME))
            | ({API_KEY_VARIABLE: _KEY, EXECUTOR_TOKEN_VARIABLE: _TOKEN} if server.asks_for_key else {}),
            "port": [GRPC_PORT, HTTP_PORT],
            "protocol": ["grpc", "http"],
            **_traces(deployment),
            "replicas": deployment.gateways,
            # Jina Cloud's proxy closes connections that are silent longer; our gateway ends requests that take longer.
            "jcloud": {"expose": True, "timeout": math.ceil(server.request_timeout), "resources": resources},
        }

    def _executor(self, deployment: Deployment) -> dict[str, Any]:
        server, scaling = deployment.server, deployment.autoscale
        jcloud: dict[str, Any] = {"resources": self._resources(deployment)}
        if scaling is not None:
            bounds = {"min": scaling.least, "max": scaling.most}
            jcloud["autoscale"] = bounds | {"metric": "concurrency", "target": scaling.in_flight}
        return {
            "name": EXECUTOR_NAME,
            "uses": _image(deployment, "executor"),
            **_uses_with(executor_settings(ServedModel.of(server), server)),
            "env": _without_flow(deployment.executor_env(EXECUTOR_NAME))
            | ({EXECUTOR_TOKEN_VARIABLE: _TOKEN} if server.asks_for_key else {}),
            "replicas": deployment.replicas,
            "timeout_ready": START_SECONDS * 1000,
            **_traces(deployment),
            "jcloud": jcloud,
        }

    def _resources(self, deployment: Deployment) -> dict[str, Any]:
        if not self.instance:
            cpus = int(deployment.cpus) if deployment.cpus == int(deployment.cpus) else deployment.cpus
            asked: dict[str, Any] = {"cpu": cpus, "memory": _gigabytes(deployment.memory_gib)}
            return asked | ({"gpu": deployment.gpus} if deployment.gpus else {}) | {"capacity": self.capacity}
        cores, memory, gpus = INSTANCES[self.instance]
        for flag, wanted, there in (
            ("--cpus", deployment.cpus, cores),
            ("--memory", round(deployment.memory_gib * 2**30 / 10**9, 1), memory),
            ("--gpus", deployment.gpus, gpus),
        ):
            if wanted > there:
                raise SetupError(f"--instance {self.instance} has {there:g}, less than {flag} requires: {wanted:g}")
        return {"instance": self.instance, "capacity": self.capacity}


def _token(name: str, key: str) -> str:
    """Return the executors' token, the same for each update of a deployment: executors that stay go on being asked."""
    return hmac.new(key.encode(), f"executors of {name}".encode(), hashlib.sha256).hexdigest()


def _check(deployment: Deployment) -> None:
    deployment.check_closed("anyone who finds its address on the internet")
    if deployment.server.api_key_file is not None:
        raise SetupError(
            f"Jina Cloud gives containers no files, so --api-key-file does not work: set {API_KEY_VARIABLE} to one key"
        )
    scaling = deployment.autoscale
    if scaling is not None and deployment.replicas != scaling.least:
        raise SetupError(
            f"--replicas {deployment.replicas}: with --autoscale Jina Cloud starts with MIN, {scaling.least}"
        )


def _image(deployment: Deployment, role: str) -> str:
    """Return `docker://NAME-ROLE:TAG` for the image NAME:TAG: commands in Jina Cloud's containers have no role."""
    if "@" in deployment.image:
        raise SetupError(
            f"--image {deployment.image}: on Jina Cloud it stands for two images, NAME-gateway:TAG and "
            "NAME-executor:TAG: give a tag in place of the digest"
        )
    name, tag = re.fullmatch(r"(.*?)(:[\w.-]+)?", deployment.image).groups()  # type: ignore[union-attr]
    return f"docker://{name}-{role}{tag or ''}"


def _traces(deployment: Deployment) -> dict[str, Any]:
    """Return Jina's trace options, which each pod gets separately."""
    endpoint = deployment.server.trace_endpoint
    return {} if endpoint is None else trace_options(endpoint)


def _uses_with(values: dict[str, Any]) -> dict[str, Any]:
    return {"uses_with": values} if values else {}


def _without_flow(env: dict[str, str]) -> dict[str, str]:
    """Remove the Flow: Jina Cloud makes the commands' options from it, so that no container needs all of it."""
    return {name: value for name, value in env.items() if name != FLOW_VARIABLE}


def _gigabytes(gib: float) -> str:
    return f"{math.ceil(gib * 2**30 / 10**9)}G"


def _yaml(flow: dict[str, Any]) -> str:
    return yaml.safe_dump(flow, sort_keys=False, width=120, allow_unicode=True)


def _endpoints(endpoints: list[str]) -> Endpoints:
    def first(scheme: str) -> str | None:
        return next((url for url in endpoints if url.startswith(scheme)), None)

    return Endpoints(http=first("http"), grpc=first("grpc"))


def _client() -> ModuleType:
    """Import `jina_client`. It imports jcloud, which then reads the environment and warns about a library."""
    os.environ.update(JCLOUD_NO_PROGRESSBAR="1", JCLOUD_HIDE_SUCCESS_MSG="1", JCLOUD_LOGLEVEL="ERROR")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from run_gpt.deploy import jina_client
    return jina_client
