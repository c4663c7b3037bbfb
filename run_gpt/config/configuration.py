"""The configuration of a model: frozen values, layered by inheritance. Each field declares its setting (see Option)."""

from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Self, get_args, get_origin, get_type_hints

from run_gpt.config.option import Option, Panel
from run_gpt.config.values import (
    DEFAULT_MODEL,
    GenerationConfig,
    KernelSource,
    Precision,
    Runner,
)


class Config:
    """Base of configurations."""

    @classmethod
    def of(cls, other: Any) -> Self:
        """Return the part of a wider configuration that this class holds."""
        return cls(**{f.name: getattr(other, f.name) for f in fields(cls)})  # type: ignore[arg-type]

    @classmethod
    def take(cls, settings: dict[str, Any]) -> Self:
        """Remove this class's fields from the settings, and return a configuration of them.

        A Flow's YAML has neither paths nor tuples, and Jina makes a number of a text that looks like one: such values
        get the types that the fields declare.
        """
        hints = get_type_hints(cls)
        mine = {f.name: settings.pop(f.name) for f in fields(cls) if f.name in settings}  # type: ignore[arg-type]
        return cls(**{name: _as_declared(value, hints[name]) for name, value in mine.items()})


def _as_declared(value: Any, hint: Any) -> Any:
    kinds = {get_origin(kind) or kind for kind in (get_args(hint) if get_origin(hint) is UnionType else (hint,))}
    if Path in kinds and isinstance(value, str):
        return Path(value)
    if tuple in kinds:
        return tuple(map(str, value if isinstance(value, list | tuple) else [value]))
    if kinds == {str, NoneType} and isinstance(value, int | float):
        return str(value)
    if hint == dict[str, str] | None and value is not None:
        return {str(key): str(item) for key, item in value.items()}
    return value


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """The model, and options for loading it."""

    model_name: Annotated[
        str | None,
        Option(
            "A catalogue name (`rungpt models list`), a hub id (org/name, org/name:Q4_K_M), a folder or a GGUF file."
        ),
    ] = None
    revision: Annotated[
        str | None, Option("Branch, tag or commit of a model of the hub; default: the newest.", Panel.MODEL)
    ] = None
    model_path: Annotated[
        str | None,
        Option("A folder or GGUF file to load instead of the model that `model_name` finds; the name stays."),
    ] = None
    served_model_name: Annotated[
        tuple[str, ...],
        Option("Name that requests use instead of the model's own; the first one is shown.", Panel.MODEL),
    ] = ()
    precision: Annotated[
        Precision,
        Option("auto: a GGUF file's own where the native runner has it, else the fastest without loss.", Panel.MODEL),
    ] = "auto"
    device: Annotated[str | None, Option("cpu, cuda, cuda:1, ...; default: a GPU if there is one.", Panel.MODEL)] = None
    device_map: Annotated[
        str | dict[str, Any] | list[int] | None,
        Option("single, balanced, auto, sequential, GPU numbers, or accelerate's map; default: single.", Panel.MODEL),
    ] = None
    max_memory: Annotated[
        dict[str | int, str | int] | None,
        Option(
            "Most memory for weights by GPU number or cpu, with a device map; the rest goes to the CPU and to disk.",
            Panel.MODEL,
        ),
    ] = None
    tensor_parallel: Annotated[
        int, Option("Processes that each hold a share of every layer, if the family has a plan.", Panel.MODEL, least=1)
    ] = 1
    adapter_name_or_path: Annotated[
        str | None, Option("A LoRA adapter (PEFT), a folder or a hub id, for requests that name none.")
    ] = None
    adapters: Annotated[
        dict[str, str] | None,
        Option("More LoRA adapters, by the names that requests use.", Panel.MODEL, flag="--adapter"),
    ] = None
    chat_template: Annotated[
        str | None,
        Option(
            "A Jinja file, or the name of a template: one of the model's, or of ours, such as vicuna; "
            "default: the model's.",
            Panel.MODEL,
        ),
    ] = None
    trust_request_chat_template: Annotated[
        bool, Option("Let requests bring a chat template as text, not only name one of the model's.", Panel.MODEL)
    ] = False
    generation_config: Annotated[
        GenerationConfig,
        Option(
            "Sampling defaults of requests: auto: the model's generation_config.json; none: OpenAI's under /v1, "
            "else greedy.",
            Panel.MODEL,
        ),
    ] = "auto"
    allow_special_tokens: Annotated[
        bool,
        Option(
            "Read special tokens, such as <|im_start|>, in the messages of chats; without it they are text.",
            Panel.MODEL,
        ),
    ] = False
    trust_remote_code: Annotated[bool, Option("Run Python code that comes with the model.", Panel.MODEL)] = False
    allow_pickle: Annotated[bool, Option("Load pickled weights, which can run any code.", Panel.MODEL)] = False
    cache_dir: Annotated[
        Path | None,
        Option(
            "Folder for what RunGPT makes of models; default: $RUNGPT_CACHE, else `~/.cache/rungpt`. Models of the hub "
            "lie in the hub's own cache (HF_HOME)."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class EngineConfig(Config):
    """Limits and options of an engine."""

    max_running: Annotated[int, Option("Most sequences decoded together, in each replica.", Panel.SIZE, least=1)] = 64
    max_waiting: Annotated[
        int,
        Option("Most sequences that wait for a slot; one more gets a QueueFull (429).", Panel.SIZE, least=0),
    ] = 256
    max_step_tokens: Annotated[
        int, Option("Most tokens in one step; longer prompts are run in parts.", Panel.SIZE, least=1)
    ] = 512
    runner: Annotated[
        Runner,
        Option(
            "native: most families on a CPU; fast: Llama and similar models on a GPU or without a compiler; "
            "generic: all families; alone: one sequence at a time.",
            Panel.SIZE,
        ),
    ] = "auto"
    kernels: Annotated[
        KernelSource,
        Option(
            "Native kernels: prebuilt: those that the package carries for this kind of CPU; compiled: for this very "
            "CPU, with its C++ compiler; auto: prebuilt if there are any.",
            Panel.SIZE,
        ),
    ] = "auto"
    max_context: Annotated[
        int | None, Option("Most tokens of prompt and answer together; default: the model's.", Panel.SIZE, least=1)
    ] = None
    max_cache_tokens: Annotated[
        int | None,
        Option(
            "Most tokens in the KV cache, of all sequences and those kept for reuse; "
            "default: what half of the free memory holds, at least one context.",
            Panel.SIZE,
            least=1,
        ),
    ] = None
    reuse_prefixes: Annotated[
        bool, Option("Keep the KV cache of ended sequences, for prompts with the same beginning.", Panel.SIZE)
    ] = True
    compile: Annotated[bool, Option("Compile the model with torch.compile; generic runner only.", Panel.SIZE)] = False
    speculate: Annotated[
        bool, Option("Draft tokens from earlier text under low load, and check several at once.", Panel.SIZE)
    ] = True


@dataclass(frozen=True, kw_only=True)
class HostConfig(Config):
    """Times at which a model is in memory, its share of the memory, and the time after which its engine hangs."""

    preload: Annotated[
        bool,
        Option(
            "Load at the start, else when a request needs it; default: the first of several models only.",
            Panel.MEMORY,
            by_position=True,
        ),
    ] = True
    memory: Annotated[
        int | None,
        Option(
            "Most memory of weights and KV cache in each replica, such as 2GB; "
            "default: an equal share, but at least what it needs.",
            least=1,
            is_size=True,
        ),
    ] = None
    unload_after: Annotated[
        float | None,
        Option(
            "Seconds without a request until a model is unloaded; 0: never. "
            "Default: 600 with several models, never with one.",
            Panel.MEMORY,
            least=0,
            by_position=True,
        ),
    ] = None
    step_timeout: Annotated[
        float,
        Option("Seconds for one step of the engine, after which its replica is restarted.", Panel.SERVER, least=1),
    ] = 600.0


@dataclass(frozen=True, kw_only=True)
class ServedModel(ModelConfig, EngineConfig, HostConfig):
    """One of the models of a server."""

    replicas: Annotated[
        int, Option("Processes that each hold the whole model, and share cores, memory and GPUs.", Panel.SIZE, least=1)
    ] = 1

    @property
    def short_name(self) -> str:
        """Last part of the given name or path, for lines that people read."""
        given = self.model_name or self.model_path or DEFAULT_MODEL
        return Path(given).name or given
