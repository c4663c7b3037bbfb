"""Options shared by several commands. Names, defaults and help come from the configuration and the request schema."""

import inspect
import json
import os
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from run_gpt.api.schema import Parameters
from run_gpt.config import (
    API_KEY_VARIABLE,
    DEFAULT_MODEL,
    LOG_FORMAT_VARIABLE,
    LogFormat,
    ModelConfig,
    Precision,
    Runner,
    ServeConfig,
)
from run_gpt.errors import SetupError

LOADING = "Model"
PARAMETERS = "Request"
DOORS = "Doors"
ACCESS = "Access"
SIZE = "Size"

ModelNames = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL",
        help=f"A catalogue name (`rungpt models list`), a hub id, a folder or a GGUF file; default: {DEFAULT_MODEL}.",
    ),
]
"""One or several models. No argument is None, not the default model, so that commands can tell the two apart."""

ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        help=f"The server's key; better in ${API_KEY_VARIABLE}, since others see the command line in `ps`.",
    ),
]

# Name in ModelConfig: flag, type, default, help.
_LOADING: dict[str, tuple[str, Any, Any, str]] = {
    "precision": ("--precision", Precision, ModelConfig.precision, "auto: the fastest without loss on this device."),
    "device": ("--device", str | None, None, "cpu, cuda, cuda:1, ...; default: a GPU if there is one."),
    "device_map": (
        "--device-map",
        str | None,
        None,
        "single, balanced, auto, sequential, GPU numbers such as 0,1, or accelerate's map as JSON.",
    ),
    "adapters": (
        "--adapter",
        list[str],
        [],
        "A LoRA adapter (PEFT): a folder or a hub id, for requests that name none; or NAME=PATH; several times.",
    ),
    "max_memory": (
        "--max-memory",
        str | None,
        None,
        "Most memory for weights, such as cpu=8GB,0=10GB, with a device map; the rest goes to the CPU and to disk.",
    ),
    "tensor_parallel": ("--tensor-parallel", int, 1, "Processes that each hold a share of every layer."),
    "trust_remote_code": ("--trust-remote-code", bool, False, "Run Python code that comes with the model."),
    "allow_pickle": ("--allow-pickle", bool, False, "Load pickled weights, which can run any code."),
}
LOADING_OPTIONS = {name: flag for name, (flag, *_) in _LOADING.items()}
"""Parameter name and flag of each option of `with_loading`."""

# Name in ServeConfig: type, help, panel, and further arguments of typer.Option. Flag and default come from the field.
_SERVING: dict[str, tuple[Any, str, str, dict[str, Any]]] = {
    "replicas": (int, "Processes that each hold the whole model, and share cores, memory and GPUs.", SIZE, {"min": 1}),
    "max_running": (int, "Sequences decoded together, in each replica.", SIZE, {"min": 1}),
    "max_waiting": (int, "Sequences that may wait; one more gets a 429.", SIZE, {"min": 0}),
    "max_step_tokens": (int, "Tokens in one step; longer prompts are taken in parts.", SIZE, {"min": 1}),
    "runner": (
        Runner,
        "native: Llama and its like on a CPU; fast: them elsewhere; generic: all families; alone: row by row.",
        SIZE,
        {},
    ),
    "max_context": (int | None, "Most tokens of prompt and answer together.", SIZE, {"min": 1}),
    "max_cache_tokens": (
        int | None,
        "Tokens in the cache, of all sequences; default: by free memory.",
        SIZE,
        {"min": 1},
    ),
    "reuse_prefixes": (bool, "Reuse the cache for prompts that begin like earlier ones.", SIZE, {}),
    "speculate": (bool, "Draft tokens from earlier text and check several at once.", SIZE, {}),
    "compile": (bool, "Compile the model with torch.compile; generic runner.", SIZE, {"flag": "--compile"}),
    "request_timeout": (float, "Seconds until a request gets a 504.", DOORS, {"min": 0.001}),
    "drain_seconds": (float, "Seconds that running requests get when it stops.", DOORS, {"min": 0}),
    "max_body_bytes": (int, "Largest request body; a larger one gets a 413.", DOORS, {"min": 1}),
    "runtime_adapters": (
        bool,
        "Let requests load and unload LoRA adapters.",
        DOORS,
        {"flag": "--runtime-adapters"},
    ),
    "api_key": (
        str | None,
        "The key that requests must have; better in the environment: others see the command line in `ps`.",
        ACCESS,
        {"envvar": API_KEY_VARIABLE},
    ),
    "api_key_file": (
        Path | None,
        "Keys with names, a line NAME: KEY each; read anew when it changes.",
        ACCESS,
        {"resolve_path": True},
    ),
    "cors_origins": (
        list[str],
        "Origin of web pages that may call the HTTP door; * is any; several times.",
        ACCESS,
        {"flag": "--cors-origin"},
    ),
    "log_requests": (
        bool,
        "Log a line for each request: route, status, seconds, key, id.",
        ACCESS,
        {"flag": "--log-requests"},
    ),
    "trace_endpoint": (
        str | None,
        "Send traces to this collector (OTLP over gRPC).",
        DOORS,
        {"metavar": "HOST:PORT"},
    ),
    "log_format": (
        LogFormat,
        "json: each line of every process's log is a JSON object.",
        DOORS,
        {"envvar": LOG_FORMAT_VARIABLE},
    ),
    "log_load": (
        float | None,
        "Log a JSON line with the load each so many seconds.",
        DOORS,
        {"min": 1},
    ),
}

LEAST: dict[str, float] = {name: more["min"] for name, (*_, more) in _SERVING.items() if "min" in more}
"""Lower limit of each ServeConfig field that has one."""

Command = Callable[..., None]


def token(api_key: str | None) -> str | None:
    """Return the API key to send to a server: from the option, else from the environment, else None."""
    return api_key if api_key is not None else os.environ.get(API_KEY_VARIABLE) or None


def with_loading(command: Command) -> Command:
    """Add the model loading options to a command. It receives them as `loading`, a dict of ModelConfig fields."""
    options = [
        keyword(name, kind, default, typer.Option(flag, help=text, rich_help_panel=LOADING))
        for name, (flag, kind, default, text) in _LOADING.items()
    ]

    def collect(given: dict[str, Any]) -> dict[str, Any]:
        adapters = _parse_adapters(given.pop("adapters"))
        maps = _parse_device_map(given["device_map"]), _parse_max_memory(given["max_memory"])
        return {**given, **adapters, "device_map": maps[0], "max_memory": maps[1]}

    return extended(command, "loading", options, collect)


def with_serving(command: Command) -> Command:
    """Add the server options to a command, which receives them as `serving`.

    They are ServeConfig's fields except host, ports and the fields of the model, which `with_loading` adds.
    """
    options = []
    for name, (kind, text, panel, more) in _SERVING.items():
        more = dict(more)
        flags = [more.pop("flag")] if "flag" in more else []
        default = [] if kind == list[str] else getattr(ServeConfig, name, None)
        options.append(keyword(name, kind, default, typer.Option(*flags, help=text, rich_help_panel=panel, **more)))

    def collect(given: dict[str, Any]) -> dict[str, Any]:
        return {**given, "cors_origins": tuple(given["cors_origins"])}

    return extended(command, "serving", options, collect)


def with_parameters(schema: type[Parameters]) -> Callable[[Command], Command]:
    """Add an option to a command for each field of the schema. It receives those that were set as `parameters`."""
    options = [_parameter(name, schema) for name in schema.model_fields if name not in _NO_OPTION]

    def collect(given: dict[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in given.items() if value not in (None, [])}
        return {name: _PARSERS[name](value) if name in _PARSERS else value for name, value in given.items()}

    return lambda command: extended(command, "parameters", options, collect)


def extended(
    command: Command, into: str, options: list[inspect.Parameter], collect: Callable[[dict[str, Any]], dict[str, Any]]
) -> Command:
    """Replace the argument `into` of a command by these options. The command receives their collected values there."""
    signature = inspect.signature(command)
    names = {option.name for option in options}

    @wraps(command)
    def run(**given: Any) -> None:
        collected = collect({name: given.pop(name) for name in names})
        command(**given, **{into: collected})

    kept = [p.replace(kind=p.KEYWORD_ONLY) for name, p in signature.parameters.items() if name != into]
    run.__signature__ = signature.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*kept, *options)}
    del run.__wrapped__
    return run


def keyword(name: str, kind: Any, default: Any, option: Any) -> inspect.Parameter:
    """Return a keyword parameter for a command, from which typer makes an option."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


# `--model` and the prompt have their own arguments; results of tools cannot be returned on a command line.
_NO_OPTION = {"model", "prompt", "messages", "tools", "tool_choice", "parallel_tool_calls"}
# Fields that are not one plain value: the option's type, and a text that its help adds to the schema's description.
_WRITTEN: dict[str, tuple[Any, str]] = {
    "stop": (list[str], "May be given several times."),
    "logit_bias": (list[str], "Written as ID=VALUE; may be given several times."),
    "response_format": (str, 'Written as JSON, such as {"type": "json_object"}, or @FILE that has it.'),
}


def _parameter(name: str, schema: type[Parameters]) -> inspect.Parameter:
    field = schema.model_fields[name]
    kind, written = _WRITTEN[name] if name in _WRITTEN else (_plain(field.annotation), "")
    text = " ".join([(field.description or "").replace("`", ""), written]).strip()
    # `--adapter` is the option for loading adapters.
    flag = "--use-adapter" if name == "adapter" else f"--{name.replace('_', '-')}"
    if kind is bool:
        flag = f"{flag}/--no-{flag[2:]}"
    option = typer.Option(flag, help=text, show_default=False, rich_help_panel=PARAMETERS)
    return keyword(name, kind, [], option) if kind == list[str] else keyword(name, kind | None, None, option)


def _plain(annotation: Any) -> Any:
    """Return the builtin type of a field that is one plain value or None. The schema checks its limits."""
    if annotation in (str, int, float, bool):
        return annotation
    kind, *_ = get_args(annotation) or [None]
    if kind is None:
        raise TypeError(f"{annotation} is no plain value: say in _WRITTEN how an option of it is written")
    return _plain(kind)


_NAMED_ADAPTER = re.compile(r"([A-Za-z0-9][\w.-]*)=(.+)")


def _parse_adapters(texts: list[str]) -> dict[str, Any]:
    """Return ModelConfig's two adapter fields from the values of `--adapter`."""
    default, named = None, {}
    for text in texts:
        if match := _NAMED_ADAPTER.fullmatch(text):
            if match[1] in named:
                raise SetupError(f"--adapter {text}: there are two adapters called {match[1]}")
            named[match[1]] = match[2]
        elif default is not None:
            raise SetupError(f"--adapter {text}: only one may have no name; write NAME={text}")
        else:
            default = text
    return {"adapter_name_or_path": default, "adapters": named or None}


def _parse_device_map(text: str | None) -> str | dict[str, Any] | list[int] | None:
    """Parse a device map: `0,1` is a list of GPUs, `{...}` is accelerate's map as JSON, any other text is a name."""
    if text is None:
        return None
    if text.startswith("{"):
        try:
            return dict(json.loads(text))
        except ValueError as error:
            raise SetupError(f"--device-map {text}: this is no JSON: {error}") from None
    parts = text.split(",")
    return [int(part) for part in parts] if all(part.isdecimal() for part in parts) else text


def _parse_max_memory(text: str | None) -> dict[str, Any] | None:
    """Parse `cpu=8GB,0=10GB`, or the same as JSON. The loader checks names and sizes."""
    if text is None:
        return None
    if text.startswith("{"):
        try:
            return dict(json.loads(text))
        except ValueError as error:
            raise SetupError(f"--max-memory {text}: this is no JSON: {error}") from None
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(key.strip() and value.strip() for key, _, value in pairs):
        raise SetupError(f"--max-memory {text}: write NAME=SIZE, such as cpu=8GB,0=10GB")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _parse_bias(pairs: list[str]) -> dict[str, float]:
    bias = {}
    for pair in pairs:
        token_id, _, value = pair.partition("=")
        try:
            bias[token_id] = float(value)
        except ValueError:
            raise SetupError(f"--logit-bias {pair}: write ID=VALUE, such as 50=-100") from None
    return bias


def _parse_response_format(text: str) -> Any:
    """Parse a response format from JSON, or from the JSON file named by `@FILE`."""
    try:
        return json.loads(Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text)
    except OSError as error:
        raise SetupError(f"--response-format {text}: {error.strerror}") from None
    except ValueError as error:
        raise SetupError(f"--response-format {text}: this is no JSON: {error}") from None


_PARSERS: dict[str, Callable[[Any], Any]] = {"logit_bias": _parse_bias, "response_format": _parse_response_format}
