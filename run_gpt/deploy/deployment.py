"""Owns the deployment that every target renders from: one model, its replicas, their resources, and who may use it."""

import math
import re
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Self

from run_gpt import models
from run_gpt.config import (
    EXECUTOR_PORT,
    FLOW_VARIABLE,
    LOG_FORMAT_VARIABLE,
    ModelConfig,
    ServeConfig,
    ServedModel,
    check_bounds,
)
from run_gpt.errors import ModelNotFound, SetupError
from run_gpt.flows import render_flow
from run_gpt.flows.traces import trace_options
from run_gpt.models.estimate import Estimate, estimate_entry, estimate_folder

GRPC_PORT = ServeConfig.grpc_port
HTTP_PORT = ServeConfig.http_port
GATEWAY_CPUS, GATEWAY_MEMORY_GIB = 1, 1
CACHE_PATH = "/cache"
"""Path of models and compiled kernels in a container; a volume, so that a restarted replica still has them."""
KEYS_PATH = Path("/etc/rungpt/keys/keys")
"""Path of the key file in the gateway's container."""
EXECUTOR_TLS_PATH = "/etc/rungpt/executor-tls"
"""Path of the certificate for TLS between gateways and executors in a container."""
STOP_MARGIN = 15
"""Seconds that a container gets after its drain time before it is killed."""

ONE_MODEL = "there is one model to a deployment: deploy each by itself, under a --name of its own"
"""Error message for a server of several models."""
NO_TLS = (
    "--tls-cert: the files are not on the containers' machines; end TLS before them: --tls-secret (Kubernetes), "
    "--certificate (AWS), or a proxy"
)
"""Error message for a server with a certificate."""

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_IMAGE = re.compile(r"[a-z0-9][\w.\-/:]*(@sha256:[0-9a-f]{64})?")
_PROCESS_GIB = 1.5
"""Memory of an executor besides its weights, in GiB: Python, torch and the tensors of an engine step."""


@dataclass(frozen=True, kw_only=True)
class Autoscale:
    """Autoscaling by load: as many replicas, within the bounds, as keep `in_flight` requests in flight in each."""

    least: int
    most: int
    in_flight: int = 16

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `MIN:MAX` or `MIN:MAX:IN_FLIGHT`. Raises SetupError."""
        parts = text.split(":")
        if len(parts) not in (2, 3) or not all(part.isdecimal() for part in parts):
            raise SetupError(f"--autoscale {text}: write MIN:MAX or MIN:MAX:IN_FLIGHT, such as 1:8:16")
        least, most, *rest = map(int, parts)
        if not 1 <= least < most or rest == [0]:
            raise SetupError(f"--autoscale {text}: MIN is at least 1, MAX more than MIN, IN_FLIGHT at least 1")
        return cls(least=least, most=most, in_flight=rest[0] if rest else cls.in_flight)


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """Gateway service in front of replicas of one model. Raises SetupError if no target could run it."""

    server: ServeConfig
    """Model, precision, device map, adapters, engine, endpoints, keys and replicas; the target sets host and ports."""
    name: str = ""
    """Name of everything that is made for it; default: the model's name."""
    image: str = f"rungpt:{version('rungpt')}"
    gateways: int = 1
    cpus: float = 2
    """Number of CPUs of each replica."""
    memory_gib: float = 0
    """Memory of each replica, in GiB; default: the need of the model, if that is known."""
    gpus: int = 0
    """Number of GPUs of each replica."""
    autoscale: Autoscale | None = None
    open: bool = False
    """True when all clients that reach it may use it without a key."""

    def __post_init__(self) -> None:
        if self.server.models:
            raise SetupError(ONE_MODEL)
        if self.server.uses_tls:
            raise SetupError(NO_TLS)
        _check_paths(self.server)
        _check_traces(self.server.trace_endpoint)
        object.__setattr__(self, "name", self.name or _default_name(self.server))
        object.__setattr__(self, "memory_gib", self.memory_gib or _default_memory(self.server, self.gpus))
        if not _NAME.fullmatch(self.name):
            raise SetupError(f"--name {self.name}: up to 40 of a-z 0-9 -, the first a letter, the last no hyphen")
        if not _IMAGE.fullmatch(self.image):
            raise SetupError(f"--image {self.image}: this is no image's name")
        check_bounds(ServedModel.of(self.server))
        for option, value, least in (
            ("--gateways", self.gateways, 1),
            ("--cpus", self.cpus, 0.1),
            ("--memory", self.memory_gib, 0.5),
            ("--gpus", self.gpus, 0),
        ):
            if value < least:
                raise SetupError(f"{option} must be at least {least:g}, not {value:g}")
        if self.autoscale is not None and not self.autoscale.least <= self.replicas <= self.autoscale.most:
            raise SetupError(
                f"--replicas {self.replicas}: with --autoscale it starts within {self.autoscale.least} and "
                f"{self.autoscale.most}"
            )

    @property
    def model(self) -> str:
        """Name of the model in requests."""
        return models.served_name(ModelConfig.of(self.server))

    @property
    def replicas(self) -> int:
        """Number of executors; with autoscaling the number at the start."""
        return self.server.replicas

    @property
    def drain_seconds(self) -> int:
        """Whole seconds that running requests get to finish."""
        return math.ceil(self.server.drain_seconds)

    @property
    def stop_seconds(self) -> int:
        """Whole seconds that a container gets from its SIGTERM to its SIGKILL."""
        return self.drain_seconds + STOP_MARGIN

    def keys_file(self) -> str | None:
        """Return the text of the key file, for the target's secret; None if there is none. Raises SetupError."""
        file = self.server.api_key_file
        try:
            return None if file is None else file.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise SetupError(f"the file of keys {file} cannot be read: {error}") from error

    def check_closed(self, where: str) -> None:
        """Raise SetupError if requests need no key and `open` is not set; `where` names the possible clients."""
        if not (self.server.asks_for_key or self.open):
            raise SetupError(
                f"{where} could use this model: give --api-key-file or $RUNGPT_API_KEY, or say --open if that is meant"
            )

    def flow(self, executor_host: str, *, keys_path: Path = KEYS_PATH) -> str:
        """Return the Flow's YAML for the containers, without a key; its gateway finds the executors by this host name.

        `keys_path`: path of the key file in the gateway's container, if there is one.
        """
        server = replace(
            self.server,
            host=None,
            grpc_port=GRPC_PORT,
            http_port=HTTP_PORT,
            api_key_file=None if self.server.api_key_file is None else keys_path,
        )
        return render_flow(server, executor_address=(executor_host, EXECUTOR_PORT))

    def gateway_env(self, executor_host: str, *, keys_path: Path = KEYS_PATH) -> dict[str, str]:
        """Return the environment of a gateway's container, without the key."""
        flow = self.flow(executor_host, keys_path=keys_path)
        log_format = self.server.log_format
        form = {LOG_FORMAT_VARIABLE: log_format} if log_format != ServeConfig.log_format else {}
        return {FLOW_VARIABLE: flow, "JINA_OPTOUT_TELEMETRY": "1"} | form

    def executor_env(self, executor_host: str, *, keys_path: Path = KEYS_PATH) -> dict[str, str]:
        """Return the environment of an executor's container.

        A container sees all cores of its machine, not only its share: the number of threads must be set.
        """
        return self.gateway_env(executor_host, keys_path=keys_path) | {
            "RUNGPT_CACHE": CACHE_PATH,
            "OMP_NUM_THREADS": str(max(1, math.floor(self.cpus))),
        }


def pod_command(role: str) -> list[str]:
    """Return the command that runs the `gateway` or an `executor` of the Flow in the container's environment."""
    return ["python", "-P", "-m", "run_gpt.flows.pod", role]


def _check_paths(server: ServeConfig) -> None:
    """Raise SetupError for a path on this machine.

    A relative path is on this machine; an absolute one is in the container, in the image or a volume.
    """
    paths = {
        "MODEL": server.model_name,
        "--adapter": server.adapter_name_or_path,
        "--chat-template": server.chat_template,
    }
    paths |= {f"--adapter {name}": path for name, path in (server.adapters or {}).items()}
    for option, path in paths.items():
        if path and not path.startswith("/") and (path.startswith((".", "~")) or Path(path).exists()):
            raise SetupError(
                f"{option} {path} is on this machine, where no container finds it: put it into the image and give its "
                "absolute path there, or give a hub id"
            )


def _check_traces(endpoint: str | None) -> None:
    host = "" if endpoint is None else trace_options(endpoint)["traces_exporter_host"].partition("://")[2]
    if host == "localhost" or host.startswith("127.") or host == "[::1]":
        raise SetupError(
            f"--trace-endpoint {endpoint}: in a container {host} is the container's own: give another host"
        )


def _default_name(server: ServeConfig) -> str:
    served = models.served_name(ModelConfig.of(server)).rpartition("/")[2].lower()
    return ("rungpt-" + re.sub(r"[^a-z0-9]+", "-", served))[:40].strip("-")


def _default_memory(server: ServeConfig, gpus: int) -> float:
    """Return the GiB for the weights, a KV cache of one context and the process.

    Raises SetupError if the model's size is not known.
    """
    estimate = _estimate(server)
    if estimate is None:
        raise SetupError(f"how much memory {server.model_name} takes is not known here: give --memory, in GiB")
    precision = "bf16" if server.precision == "auto" else server.precision
    cache = estimate.cache(precision, native=not gpus and server.runner in ("auto", "native"))
    return math.ceil((estimate.weights(precision) + cache) / 2**30 + _PROCESS_GIB)


def _estimate(server: ServeConfig) -> Estimate | None:
    try:
        info = models.show(models.own_name(ModelConfig.of(server)), server.cache_dir)
    except ModelNotFound:
        return None
    counted = estimate_folder(info.folder) if info.folder else None
    return counted or (estimate_entry(info.parameters) if info.parameters else None)
