"""The configuration: frozen values, layered by inheritance. The CLI reads its defaults and choices from here."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

DEFAULT_MODEL = "smollm2"
Precision = Literal["auto", "fp32", "fp16", "bf16", "bit8", "bit4"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
Runner = Literal["auto", "native", "fast", "generic", "alone"]
DEVICE_MAPS = ("single", "balanced", "auto", "sequential")
API_KEY_VARIABLE = "RUNGPT_API_KEY"
"""Environment variable with the API key, for a gateway and for its clients."""
FLOW_VARIABLE = "RUNGPT_FLOW"
"""Environment variable with a Flow's YAML, for a pod without a supervisor, such as a container."""
LogFormat = Literal["text", "json"]
LOG_FORMATS: tuple[str, ...] = get_args(LogFormat)
LOG_FORMAT_VARIABLE = "RUNGPT_LOG_FORMAT"
"""Environment variable with the form of a pod's log, which the pod needs before it reads a Flow."""
EXECUTOR_PORT = 51001
"""Port of an executor in its own container."""
LOOPBACK = "127.0.0.1"
EVERY_INTERFACE = "0.0.0.0"


class _Config:
    @classmethod
    def of(cls, other: Any) -> Self:
        """Return the part of a wider configuration that this class holds."""
        return cls(**{f.name: getattr(other, f.name) for f in fields(cls)})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(_Config):
    """The model, and options for loading it."""

    model_name: str | None = None
    """A catalogue entry, a hub id, a local folder or a GGUF file; default: the catalogue's default model."""
    model_path: str | None = None
    """A local folder or GGUF file to load instead of the model that `model_name` finds; the name stays."""
    adapter_name_or_path: str | None = None
    """A LoRA adapter in PEFT format, a local folder or a hub id, for requests that name none."""
    adapters: dict[str, str] | None = None
    """More adapters, by the names that requests use."""
    precision: str = "auto"
    """One of PRECISIONS; `auto`: a GGUF file's own where the native runner has it, else the fastest without loss."""
    device: str | None = None
    """A torch device; default: the first GPU if there is one, else the CPU."""
    device_map: str | dict[str, Any] | list[int] | None = None
    """One of DEVICE_MAPS, a list of device ids, or accelerate's dict; default: `single`."""
    max_memory: dict[str | int, str | int] | None = None
    """Most memory for weights by GPU number or `cpu`, such as `{"cpu": "8GB", 0: "10GiB"}`, for device maps that depend
    on memory; weights that do not fit go to the CPU, then to disk."""
    tensor_parallel: int = 1
    """Processes that each hold a share of every layer; transformers must have a plan for the model's family."""
    trust_remote_code: bool = False
    """Allow Python code that comes with the model to run."""
    allow_pickle: bool = False
    """Allow pickled weights, which can run any code when they are loaded."""
    cache_dir: Path | None = None
    """Folder for models; default: $RUNGPT_CACHE, else `~/.cache/rungpt`."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig(_Config):
    """Limits and options of an engine."""

    max_running: int = 64
    """Most sequences that are decoded together."""
    max_waiting: int = 256
    """Most sequences that wait for a slot; one more is refused with QueueFull."""
    max_step_tokens: int = 512
    """Most tokens in one engine step. A longer prompt is run in parts, and running answers go on between them."""
    runner: Runner = "auto"
    """`native` for Llama and similar models on a CPU, `fast` for them on a GPU or without a compiler, `generic` for all
    families, `alone` for one sequence at a time; `auto` chooses."""
    max_context: int | None = None
    """Most tokens of prompt and answer together; default: the length that the model was trained for."""
    max_cache_tokens: int | None = None
    """Most tokens in the KV cache, for all sequences together and those kept for reuse; a sequence waits until there is
    room for it. Default: as many as fit in half of the free memory, at least one whole context."""
    reuse_prefixes: bool = True
    """Keep the KV cache of ended sequences, for prompts that begin with the same tokens."""
    compile: bool = False
    """Compile the model's own forward pass with torch.compile; this uses the generic runner."""
    speculate: bool = True
    """Draft tokens from earlier text under low load, and let the model check several at once."""


@dataclass(frozen=True, kw_only=True)
class HostConfig(_Config):
    """Times at which a model is in memory, and its share of the memory."""

    preload: bool = True
    """Load the model before the server accepts requests; else on the first request for it."""
    memory: int | None = None
    """Bytes for its weights and KV cache in each replica; default: an equal share, but at least as many as it needs."""
    unload_after: float | None = None
    """Seconds without a request after which the model is unloaded; default: never."""


@dataclass(frozen=True, kw_only=True)
class ServedModel(ModelConfig, EngineConfig, HostConfig):
    """One of the models of a server."""

    replicas: int = 1
    """Number of executors; each holds the whole model."""

    @property
    def short_name(self) -> str:
        """Last part of the given name or path, for lines that people read."""
        given = self.model_name or self.model_path or DEFAULT_MODEL
        return Path(given).name or given


@dataclass(frozen=True, kw_only=True)
class GatewayConfig(_Config):
    """Options of the gateway, which serves gRPC and HTTP."""

    request_timeout: float = 600.0
    """Seconds after which an unfinished request ends with DeadlineExceeded."""
    drain_seconds: float = 30.0
    """Seconds that running requests get to finish when the server stops."""
    max_body_bytes: int = 4 * 1024 * 1024
    """Largest request body, in bytes."""
    runtime_adapters: bool = False
    """Allow requests to load and unload adapters, by paths on the machine of the model."""
    api_key_file: Path | None = None
    """File of API keys with names, beside the key in $RUNGPT_API_KEY. Each request must have one of these keys. The
    file is read again when it changes."""
    require_key: bool = False
    """Refuse to start without a key, from the file or from $RUNGPT_API_KEY."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages, such as `https://app.example.com`, whose scripts may call the HTTP port; `*`: any."""
    log_requests: bool = False
    """Write a line for each request to the gateway's log when it ends."""
    log_load: float | None = None
    """Seconds between two lines of JSON about the load in the gateway's log; default: no such lines."""
    memory_budget: int | None = None
    """Most bytes that all loaded models take together; default: no limit except the memory of the machine."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ServedModel, GatewayConfig):
    """A whole server, with one model or with `models`."""

    host: str | None = None
    """Address that both ports listen on; default: loopback, or every interface if requests need a key."""
    api_key: str | None = field(default=None, repr=False)
    """API key that each request must have. The gateway gets it through its environment; no Flow contains it."""
    grpc_port: int = 51000
    http_port: int = 52000
    trace_endpoint: str | None = None
    """`HOST:PORT` of a collector (OTLP over gRPC) for the spans of each request; after `https://`, over TLS."""
    log_format: LogFormat = "text"
    """One of LOG_FORMATS; `json`: every line of every process is one JSON object. No Flow contains it: see
    LOG_FORMAT_VARIABLE."""
    models: tuple[ServedModel, ...] = ()
    """Models of a server with several, the default one first. The fields above about one model then have their
    defaults."""

    @property
    def served(self) -> tuple[ServedModel, ...]:
        """All models, one or several."""
        return self.models or (ServedModel.of(self),)

    @property
    def asks_for_key(self) -> bool:
        """True when requests need a key."""
        return self.api_key is not None or self.api_key_file is not None or self.require_key

    @property
    def listen_host(self) -> str:
        """Value of `host`, or its default."""
        return (EVERY_INTERFACE if self.asks_for_key else LOOPBACK) if self.host is None else self.host
