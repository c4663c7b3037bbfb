"""The options that commands share; names, defaults and help come from the configuration and the request schema."""

import inspect
import json
import os
import re
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from run_gpt.api.schema import Parameters
from run_gpt.config import API_KEY_VARIABLE, ModelConfig, Precision
from run_gpt.errors import SetupError

LOADING = "Model"
PARAMETERS = "Request"

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A catalogue name (see `rungpt models list`), a hub id, a folder or a GGUF file."
    ),
]

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

Command = Callable[..., None]


def token(api_key: str | None) -> str | None:
    """What is sent to a server: the option's key, else that of the environment, if there is one."""
    return api_key if api_key is not None else os.environ.get(API_KEY_VARIABLE) or None


def with_loading(command: Command) -> Command:
    """Give a command the options that say how a model is loaded; it gets them as `loading`, ModelConfig's fields."""
    options = [
        _keyword(name, kind, default, typer.Option(flag, help=text, rich_help_panel=LOADING))
        for name, (flag, kind, default, text) in _LOADING.items()
    ]

    def collect(given: dict[str, Any]) -> dict[str, Any]:
        adapters = _parse_adapters(given.pop("adapters"))
        maps = _parse_device_map(given["device_map"]), _parse_max_memory(given["max_memory"])
        return {**given, **adapters, "device_map": maps[0], "max_memory": maps[1]}

    return _extended(command, "loading", options, collect)


def with_parameters(schema: type[Parameters]) -> Callable[[Command], Command]:
    """Give a command an option for each field of the schema; it gets those that were set as `parameters`."""
    options = [_parameter(name, schema) for name in schema.model_fields if name not in _NO_OPTION]

    def collect(given: dict[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in given.items() if value not in (None, [])}
        return {**given, "logit_bias": _parse_bias(given["logit_bias"])} if "logit_bias" in given else given

    return lambda command: _extended(command, "parameters", options, collect)


def _extended(
    command: Command, into: str, options: list[inspect.Parameter], collect: Callable[[dict[str, Any]], dict[str, Any]]
) -> Command:
    """The command with these options in the place of its argument `into`, which gets what was collected of them."""
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


def _keyword(name: str, kind: Any, default: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


_NO_OPTION = {"model", "prompt", "messages"}
_LISTS = {"stop": "May be given several times.", "logit_bias": "Written as ID=VALUE; may be given several times."}


def _parameter(name: str, schema: type[Parameters]) -> inspect.Parameter:
    field = schema.model_fields[name]
    text = " ".join([(field.description or "").replace("`", ""), _LISTS.get(name, "")]).strip()
    # `--adapter` says what is loaded.
    flag = "--use-adapter" if name == "adapter" else f"--{name.replace('_', '-')}"
    if bool in getattr(field.annotation, "__args__", ()):
        flag = f"{flag}/--no-{flag[2:]}"
    option = typer.Option(flag, help=text, show_default=False, rich_help_panel=PARAMETERS)
    if name in _LISTS:
        return _keyword(name, list[str], [], option)
    return _keyword(name, field.annotation, None, option)


_NAMED_ADAPTER = re.compile(r"([A-Za-z0-9][\w.-]*)=(.+)")


def _parse_adapters(texts: list[str]) -> dict[str, Any]:
    """ModelConfig's two fields of adapters."""
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
    """`0,1` is a list of GPUs, `{...}` accelerate's map, everything else a name."""
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
    """`cpu=8GB,0=10GB`, or the same as JSON; the loader checks what it means."""
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
