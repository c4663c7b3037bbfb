"""Owns the compose.yml of a deployment: its gateway, its executors, and the volume for models."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from run_gpt.config import API_KEY_VARIABLE, EXECUTOR_TLS_VARIABLE, EXECUTOR_TOKEN_VARIABLE
from run_gpt.deploy.deployment import (
    CACHE_PATH,
    EXECUTOR_TLS_PATH,
    GATEWAY_CPUS,
    GATEWAY_MEMORY_GIB,
    GRPC_PORT,
    HTTP_PORT,
    KEYS_PATH,
    Deployment,
    pod_command,
)

GATEWAY, EXECUTOR = "gateway", "executor"
"""Names of the services; EXECUTOR is also the network name by which the gateway finds all executors."""
KEYS_FOLDER = "keys"
"""Folder beside compose.yml that is mounted in the gateway as the folder of its key file."""
MARK = "# RunGPT for Docker Compose, made by `rungpt deploy`."

_TOKEN = f"${{{EXECUTOR_TOKEN_VARIABLE}:-}}"

_KEY_NOTE = f"""\
# {API_KEY_VARIABLE} in the environment of `docker compose` has the key, which is not in this file.
"""
_TOKEN_NOTE = f"""\
# {EXECUTOR_TOKEN_VARIABLE}, a long random text, keeps others than the gateway from the executors. `rungpt deploy`
# makes it, in a file .env beside this one, where Compose finds it.
"""
_KEYS_NOTE = f"""\
# The file of keys lies beside this one, as {KEYS_FOLDER}/{KEYS_PATH.name}. The gateway reads it as the image's user, so
# everybody must be able to read it; a folder around both that only its owner can enter keeps others away.
"""


@dataclass(frozen=True)
class Published:
    """Address and ports of the endpoints on this machine."""

    address: str
    http_port: int
    grpc_port: int


def render_compose(deployment: Deployment, published: Published, tls_folder: Path | None = None) -> str:
    """Return the text of compose.yml, without a key. Docker's DNS gives the gateway one address for each executor.

    `tls_folder`: the folder of the certificate for TLS between gateway and executors.
    """
    file: dict[str, Any] = {
        "name": deployment.name,
        "services": {GATEWAY: _gateway(deployment, published)} | dict(_executors(deployment)),
        "volumes": {"cache": {}},
    }
    if tls_folder is not None:
        for service in file["services"].values():
            _add_tls(service, tls_folder)
    if deployment.gpus:
        file["networks"] = {"default": {}}
    header = MARK + "\n" + _TOKEN_NOTE
    if deployment.server.api_key is not None:
        header += _KEY_NOTE
    if deployment.server.api_key_file is not None:
        header += _KEYS_NOTE
    return header + yaml.dump(file, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def _gateway(deployment: Deployment, published: Published) -> dict[str, Any]:
    service = _service(deployment, "gateway", _escaped(deployment.gateway_env(EXECUTOR)))
    if deployment.server.api_key is not None:
        message = "set it to the key that requests must have"
        service["environment"][API_KEY_VARIABLE] = f"${{{API_KEY_VARIABLE}:?{message}}}"
    service["ports"] = [
        {"target": target, "published": str(port), "host_ip": published.address}
        for target, port in ((HTTP_PORT, published.http_port), (GRPC_PORT, published.grpc_port))
    ]
    if deployment.server.api_key_file is not None:
        # The folder and not the file: a mounted file keeps its old content when another file replaces it.
        mount = {"type": "bind", "source": f"./{KEYS_FOLDER}", "target": str(KEYS_PATH.parent), "read_only": True}
        service["volumes"] = [mount | {"bind": {"create_host_path": False}}]
    service["deploy"] = {"resources": {"limits": _limits(GATEWAY_CPUS, GATEWAY_MEMORY_GIB)}}
    return service


def _executors(deployment: Deployment) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield one service of several containers; with GPUs one for each replica.

    All containers of one service get the same GPUs.
    """
    replicas, gpus = deployment.replicas, deployment.gpus
    for index in range(replicas if gpus else 1):
        service = _service(deployment, "executor", _escaped(deployment.executor_env(EXECUTOR)))
        service["volumes"] = [{"type": "volume", "source": "cache", "target": CACHE_PATH}]
        resources: dict[str, Any] = {"limits": _limits(deployment.cpus, deployment.memory_gib)}
        if not gpus:
            service["deploy"] = {"replicas": replicas, "resources": resources}
            yield EXECUTOR, service
            continue
        ids = [str(gpu) for gpu in range(index * gpus, (index + 1) * gpus)]
        device = {"driver": "nvidia", "device_ids": ids, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": resources | {"reservations": {"devices": [device]}}}
        service["networks"] = {"default": {"aliases": [EXECUTOR]}}
        if deployment.server.tensor_parallel > 1:
            service["shm_size"] = "1gb"  # NCCL uses it for data that the GPUs cannot exchange directly
        yield f"{EXECUTOR}-{index}", service


def _service(deployment: Deployment, role: str, environment: dict[str, str]) -> dict[str, Any]:
    """Return the settings of both roles: start, stop, and a read-only file system except for /tmp and volumes."""
    return {
        "image": deployment.image,
        "entrypoint": pod_command(role),
        "init": True,  # reaps processes that compilers and libraries leave behind
        "environment": environment | {EXECUTOR_TOKEN_VARIABLE: _TOKEN},
        "healthcheck": {
            "test": ["CMD", "python", "-P", "-m", "run_gpt.flows.healthcheck", role],
            "interval": "10s",
            "timeout": "5s",
            "retries": 3,
            "start_period": "30m",
        },
        "restart": "unless-stopped",
        "stop_grace_period": f"{deployment.stop_seconds}s",
        "read_only": True,
        "tmpfs": ["/tmp"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "logging": {"driver": "json-file", "options": {"max-size": "10m", "max-file": "5"}},
    }


def _add_tls(service: dict[str, Any], folder: Path) -> None:
    """Mount the folder; the image's user must be able to read it."""
    source = str(folder).replace("$", "$$")
    mount = {"type": "bind", "source": source, "target": EXECUTOR_TLS_PATH, "read_only": True}
    service["volumes"] = [*service.get("volumes", ()), mount | {"bind": {"create_host_path": False}}]
    service["environment"][EXECUTOR_TLS_VARIABLE] = EXECUTOR_TLS_PATH


def _limits(cpus: float, memory_gib: float) -> dict[str, str]:
    return {"cpus": f"{cpus:g}", "memory": f"{round(memory_gib * 1024)}M"}


def _escaped(environment: dict[str, str]) -> dict[str, str]:
    """Double each `$`: Compose would take it for the beginning of a variable of the caller."""
    return {name: value.replace("$", "$$") for name, value in environment.items()}


class _Dumper(yaml.SafeDumper):
    """Dumper that writes texts of several lines as block scalars, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, data: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Dumper.add_representer(str, _text)
