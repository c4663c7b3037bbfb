"""Options shared by several commands. Names, defaults and help come from the configuration and the request schema."""

import inspect
import json
import os
import re
from collections.abc import Callable, Collection
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from run_gpt.config import API_KEY_VARIABLE, DEFAULT_MODEL, ModelConfig, Option, flag_of, options_of
from run_gpt.errors import SetupError

if TYPE_CHECKING:
    from run_gpt.api.schema import Parameters

PARAMETERS = "Request"

ModelNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODEL", help=f"{options_of(ModelConfig)['model_name'].help} Default: {DEFAULT_MODEL}."),
]
"""One or several models. No argument is None, not the default model, so that commands can tell the two apart."""

ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        help=f"The server's key; better in ${API_KEY_VARIABLE}, since others see the command line in `ps`.",
    ),
]

Command = Callable[..., None]


def token(api_key: str | None) -> str | None:
    """Return the API key to send to a server: from the option, else from the environment, else None."""
    return api_key if api_key is not None else os.environ.get(API_KEY_VARIABLE) or None


def with_config(config: type[Any], into: str, leave_out: Collection[str] = ()) -> Callable[[Command], Command]:
    """Add an option to a command for each field of the configuration whose Option has a panel.

    The command receives their values as `into`, a dict of the configuration's fields. A field that is `by_position` is
    None there unless it is given.
    """
    hints, defaults = get_type_hints(config), {f.name: f.default for f in fields(config)}
    options = [
        _setting(name, hints[name], defaults[name], option)
        for name, option in options_of(config).items()
        if option.panel is not None and name not in leave_out
    ]
    return lambda command: extended(command, into, options, _values)


def with_parameters(schema: "type[Parameters]") -> Callable[[Command], Command]:
    """Add an option to a command for each field of the schema. It receives those that were set as `parameters`."""
    options = [_parameter(name, schema) for name in schema.model_fields if name not in _NO_OPTION]

    def collect(given: dict[str, Any]) -> dict[str, Any]:
        return _values({name: value for name, value in given.items() if value not in (None, [])})

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


# `--model` and the prompt have their own arguments, `--chat-template` is the loaded model's; results of tools cannot be
# returned on a command line.
_NO_OPTION = {"model", "prompt", "messages", "tools", "tool_choice", "parallel_tool_calls", "chat_template"}
# Fields that are not one plain value: the option's type, and a text that its help adds to the description.
_WRITTEN: dict[str, tuple[Any, str]] = {
    "adapters": (list[str], "Written as NAME=PATH, or PATH for requests that name none; may be given several times."),
    "cors_origins": (list[str], "May be given several times."),
    "allowed_hosts": (list[str], "May be given several times."),
    "trusted_proxies": (list[str], "May be given several times."),
    "device_map": (str, "Numbers are written as 0,1, accelerate's map as JSON."),
    "served_model_name": (list[str], "May be given several times."),
    "max_memory": (str, "Written as cpu=8GB,0=10GB."),
    "stop": (list[str], "May be given several times."),
    "logit_bias": (list[str], "Written as ID=VALUE; may be given several times."),
    "response_format": (str, 'Written as JSON, such as {"type": "json_object"}, or @FILE that has it.'),
}


def _setting(name: str, hint: Any, default: Any, declared: Option) -> inspect.Parameter:
    """Return the option of a configuration's field."""
    kind, written = _WRITTEN.get(name) or (str if declared.is_size else _plain(hint), "")
    flag = flag_of(name, declared)
    if kind is bool and (default or declared.by_position):
        flag = f"{flag}/--no-{flag[2:]}"
    option = typer.Option(
        flag,
        help=f"{declared.help} {written}".strip(),
        rich_help_panel=declared.panel,
        min=None if declared.is_size else declared.least,
        max=declared.most,
        metavar="SIZE" if declared.is_size else declared.metavar,
        envvar=declared.envvar,
        resolve_path=kind is Path,
    )
    if kind == list[str]:
        return keyword(name, kind, [], option)
    optional = default is None or declared.by_position
    return keyword(name, kind | None if optional else kind, None if optional else default, option)


def _parameter(name: str, schema: "type[Parameters]") -> inspect.Parameter:
    field = schema.model_fields[name]
    kind, written = _WRITTEN.get(name) or (_plain(field.annotation), "")
    text = " ".join([(field.description or "").replace("`", ""), written]).strip()
    # `--adapter` is the option for loading adapters.
    flag = "--use-adapter" if name == "adapter" else f"--{name.replace('_', '-')}"
    if kind is bool:
        flag = f"{flag}/--no-{flag[2:]}"
    option = typer.Option(flag, help=text, show_default=False, rich_help_panel=PARAMETERS)
    return keyword(name, kind, [], option) if kind == list[str] else keyword(name, kind | None, None, option)


def _plain(annotation: Any) -> Any:
    """Return the type of a field that is one plain value or None."""
    if annotation in (str, int, float, bool, Path) or get_origin(annotation) is Literal:
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


def _parse_device_map(text: str) -> str | dict[str, Any] | list[int]:
    """Parse a device map: `0,1` is a list of GPUs, `{...}` is accelerate's map as JSON, any other text is a name."""
    if text.startswith("{"):
        try:
            return dict(json.loads(text))
        except ValueError as error:
            raise SetupError(f"--device-map {text}: this is no JSON: {error}") from None
    parts = text.split(",")
    return [int(part) for part in parts] if all(part.isdecimal() for part in parts) else text


def _parse_max_memory(text: str) -> dict[str, Any]:
    """Parse `cpu=8GB,0=10GB`, or the same as JSON. The loader checks names and sizes."""
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


def _parse_budget(text: str) -> int:
    from run_gpt.models.sizes import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise SetupError(f"--memory-budget {error}") from None


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "cors_origins": tuple,
    "allowed_hosts": tuple,
    "trusted_proxies": tuple,
    "served_model_name": tuple,
    "device_map": _parse_device_map,
    "logit_bias": _parse_bias,
    "max_memory": _parse_max_memory,
    "memory_budget": _parse_budget,
    "response_format": _parse_response_format,
}


def _values(given: dict[str, Any]) -> dict[str, Any]:
    """Return the values of options, parsed where they are more than one plain value."""
    adapters = _parse_adapters(given["adapters"]) if "adapters" in given else {}
    return {n: _PARSERS[n](v) if n in _PARSERS and v is not None else v for n, v in given.items()} | adapters
