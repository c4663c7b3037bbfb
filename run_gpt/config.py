"""The configuration: frozen values, layered by inheritance. CLI defaults and choices are read from here."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

DEFAULT_MODEL = "smollm2"
Precision = Literal["auto", "fp32", "fp16", "bf16", "bit8", "bit4"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
Runner = Literal["auto", "native", "fast", "generic", "alone"]
DEVICE_MAPS = ("single", "balanced", "auto", "sequential")
API_KEY_VARIABLE = "RUNGPT_API_KEY"
"""The environment variable from which a gateway, and those who call one, have the key."""
FLOW_VARIABLE = "RUNGPT_FLOW"
"""The environment variable from which a pod that nobody supervises, such as a container, has its Flow's YAML."""
LogFormat = Literal["text", "json"]
LOG_FORMATS: tuple[str, ...] = get_args(LogFormat)
LOG_FORMAT_VARIABLE = "RUNGPT_LOG_FORMAT"
"""The environment variable from which a pod has the form of its log: it is wanted before a Flow is read."""
EXECUTOR_PORT = 51001
"""Where an executor in a container of its own listens."""
LOOPBACK = "127.0.0.1"
EVERY_INTERFACE = "0.0.0.0"


class _Config:
    @classmethod
    def of(cls, other: Any) -> Self:
        """The part of a wider configuration that this class holds."""
        return cls(**{f.name: getattr(other, f.name) for f in fields(cls)})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(_Config):
    """Which model, and how it is loaded."""

    model_name: str | None = None
    """A catalogue entry, a hub id, a local folder or a GGUF file; default: the catalogue's default model."""
    model_path: str | None = None
    """A local folder or GGUF file to load instead of what `model_name` would find; the name stays."""
    adapter_name_or_path: str | None = None
    """A LoRA adapter in PEFT format, a local folder or a hub id, for the requests that name none."""
    adapters: dict[str, str] | None = None
    """More of them, by the name that a request chooses them by."""
    precision: str = "auto"
    """One of PRECISIONS; `auto` is a GGUF file's own where the native runner has it, else the fastest without loss."""
    device: str | None = None
    """A torch device; default: the first GPU if there is one, else the CPU."""
    device_map: str | dict[str, Any] | list[int] | None = None
    """One of DEVICE_MAPS, a list of device ids, or accelerate's dict; default: `single`."""
    max_memory: dict[str | int, str | int] | None = None
    """Most memory for weights by GPU number or `cpu`, such as `{"cpu": "8GB", 0: "10GiB"}`, for maps that are made by
    memory; what does not fit goes on, to the CPU and to disk."""
    tensor_parallel: int = 1
    """Processes that each hold a share of every layer; transformers must have a plan for the model's family."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    allow_pickle: bool = False
    """Load pickled weights, which can run any code."""
    cache_dir: Path | None = None
    """Where models are kept; default: $RUNGPT_CACHE, else `~/.cache/rungpt`."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig(_Config):
    """How many sequences an engine takes."""

    max_running: int = 64
    """Sequences that are decoded together."""
    max_waiting: int = 256
    """Sequences that may wait for a place; one more is refused with QueueFull."""
    max_step_tokens: int = 512
    """Tokens that one step takes; a prompt with more is taken in parts, between which the running answers go on."""
    runner: Runner = "auto"
    """`native` for Llama and its like on a CPU, `fast` for them on a GPU or without a compiler, `generic` for every
    family, `alone` for one row at a time; `auto` chooses."""
    max_context: int | None = None
    """Tokens of prompt and answer together; default: what the model was trained for."""
    max_cache_tokens: int | None = None
    """Tokens that all sequences together may hold in the cache, those kept for reuse included; a sequence for which
    there is no room waits. Default: what half of the free memory holds, at least one whole context."""
    reuse_prefixes: bool = True
    """Keep what ended sequences left in the cache, for prompts that begin like them."""
    compile: bool = False
    """Compile the model's own forward pass with torch.compile; the generic runner serves."""
    speculate: bool = True
    """Draft tokens from earlier text while there is little to do, and let the model check several at once."""


@dataclass(frozen=True, kw_only=True)
class HostConfig(_Config):
    """When a model is in memory, and how much of it may be its."""

    preload: bool = True
    """Load it before requests are taken; else when the first request for it comes."""
    memory: int | None = None
    """Bytes for its weights and its cache in each replica; default: an equal share, at least what it needs."""
    unload_after: float | None = None
    """Seconds without a request after which it is unloaded; default: never."""


@dataclass(frozen=True, kw_only=True)
class ServedModel(ModelConfig, EngineConfig, HostConfig):
    """One of the models of a server."""

    replicas: int = 1
    """Executors that each hold the whole model."""

    @property
    def short_name(self) -> str:
        """For lines that people read: the last part of the name or the path that was given."""
        given = self.model_name or self.model_path or DEFAULT_MODEL
        return Path(given).name or given


@dataclass(frozen=True, kw_only=True)
class GatewayConfig(_Config):
    """The two doors."""

    request_timeout: float = 600.0
    """Seconds until a request that has not ended is ended with DeadlineExceeded."""
    drain_seconds: float = 30.0
    """Seconds that running requests get to finish when the server is told to stop."""
    max_body_bytes: int = 4 * 1024 * 1024
    """Largest request body, in bytes."""
    runtime_adapters: bool = False
    """Let requests load and unload adapters, by paths on the machine of the model."""
    api_key_file: Path | None = None
    """Keys with names, one of which each request must have, beside the one in $RUNGPT_API_KEY; read again when it
    changes."""
    require_key: bool = False
    """Do not start without a key, from the file or from $RUNGPT_API_KEY."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages, such as `https://app.example.com`, whose scripts may call the HTTP door; `*`: any."""
    log_requests: bool = False
    """Write a line for each request to the gateway's log when it ends."""
    log_load: float | None = None
    """Seconds between two lines of JSON in the gateway's log that say how much it has to do; default: none."""
    memory_budget: int | None = None
    """Bytes that all loaded models together may take; default: no more than that the machine has them."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ServedModel, GatewayConfig):
    """A whole server, of one model, or of `models`."""

    host: str | None = None
    """The address that both doors listen on; default: loopback, and every interface once requests need a key."""
    api_key: str | None = field(default=None, repr=False)
    """The key that each request must have. It reaches the gateway through its environment, and is in no Flow."""
    grpc_port: int = 51000
    http_port: int = 52000
    trace_endpoint: str | None = None
    """`HOST:PORT` of a collector (OTLP over gRPC) that gets the spans of each request; after `https://` by TLS."""
    log_format: LogFormat = "text"
    """One of LOG_FORMATS; `json`: every line of every process is one JSON object. It is in no Flow: see
    LOG_FORMAT_VARIABLE."""
    models: tuple[ServedModel, ...] = ()
    """The models of a server with several, the default one first. What the fields above say of a model is then at its
    defaults."""

    @property
    def served(self) -> tuple[ServedModel, ...]:
        """The models, one or several."""
        return self.models or (ServedModel.of(self),)

    @property
    def asks_for_key(self) -> bool:
        """Whether requests need a key."""
        return self.api_key is not None or self.api_key_file is not None or self.require_key

    @property
    def listen_host(self) -> str:
        """`host`, or what stands for it."""
        return (EVERY_INTERFACE if self.asks_for_key else LOOPBACK) if self.host is None else self.host
