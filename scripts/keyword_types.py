"""Print the types of keyword parameters, made from the request schema and the configuration; `--write` writes them.

Type checkers and editors know the names of parameters by them. A test compares them.
"""

import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from run_gpt.api.schema import SYNONYMS, ChatRequest, GenerateRequest, Parameters
from run_gpt.config import EngineConfig, ModelConfig, options_of
from run_gpt.config.values import GenerationConfig, KernelSource, Runner

PACKAGE = Path(__file__).parents[1] / "run_gpt"
MARK = "# Made by scripts/keyword_types.py: change the declarations there, and run it with --write."
BY_POSITION = {
    *("model_name", "model_path", "adapter_name_or_path", "precision", "device", "device_map", "trust_remote_code")
}
"""Parameters that `create_model` takes by position, too."""
_KINDS = {"integer": "int", "number": "float", "string": "str", "boolean": "bool", "null": "None"}
_REQUESTS = f'''\
"""Keyword parameters of a model's calls, for type checkers and editors. The request schema checks their values."""

{MARK}

from typing import Any, Literal, TypedDict

from run_gpt.api.chat import NamedTool, ResponseFormat, Tool


class CallOptions(TypedDict, total=False):
    """Options of every call."""

    timeout: float | None
    """Seconds after which the call raises DeadlineExceeded; default: never."""
    request_id: str | None
    """Name of the request in the log of a server: up to 128 printable ASCII characters without spaces."""
'''
_MODELS = f'''\
"""Keyword parameters of `create_model`, for type checkers and editors. The configuration has their defaults."""

{MARK}

from pathlib import Path
from typing import TypedDict

from run_gpt.config.values import GenerationConfig, KernelSource, Runner
'''


def requests_module() -> str:
    """Return the module of the parameters of requests."""
    described = {name: field.description for name, field in GenerateRequest.model_fields.items()}
    common = {name for name, field in Parameters.model_fields.items() if described[name] == field.description}
    of_generate, of_chat = described.keys() - common, ChatRequest.model_fields.keys() - common
    classes = [
        typed_dict("TextOptions", "CallOptions", "Options of `generate` and `chat`.", of_schema(Parameters, common)),
        typed_dict("GenerateOptions", "TextOptions", "Options of `generate`.", of_schema(GenerateRequest, of_generate)),
        typed_dict("ChatOptions", "TextOptions", "Options of `chat`.", of_schema(ChatRequest, of_chat)),
    ]
    return formatted("\n\n".join([_REQUESTS, *classes]))


def models_module() -> str:
    """Return the module of the parameters of `create_model`."""
    keys = []
    for config in (ModelConfig, EngineConfig):
        hints, options = get_type_hints(config), options_of(config)
        keys += [
            (field.name, _named(hints[field.name]), _with_default(options[field.name].help, field.default))
            for field in fields(config)
            if field.name not in BY_POSITION
        ]
    made = typed_dict("ModelOptions", "TypedDict", "Further parameters of `create_model`.", keys)
    return formatted("\n\n".join([_MODELS, made]))


def typed_dict(name: str, base: str, doc: str, keys: list[tuple[str, str, str]]) -> str:
    """Return the source of a TypedDict whose keys are given as name, type and description."""
    lines = [f"class {name}({base}, total=False):", f'    """{doc}"""', ""]
    for key, kind, text in keys:
        lines += [f"    {key}: {kind}", *(f"    {line}" for line in _docstring(text))]
    return "\n".join([*lines, ""])


def of_schema(model: type[Parameters], names: Any) -> list[tuple[str, str, str]]:
    """Return name, type and description of these fields of a request, each followed by its synonyms."""
    properties = model.model_json_schema()["properties"]
    keys = []
    for name, field in model.model_fields.items():
        if name in names and name not in ("prompt", "messages"):
            kind = kind_of(properties[name])
            keys.append((name, kind, field.description or ""))
            keys += [(other, kind, f"Same as `{name}`.") for other, meant in SYNONYMS.items() if meant == name]
    return keys


def kind_of(schema: Mapping[str, Any]) -> str:
    """Return the Python type of a JSON schema. A model may also be given as a dict."""
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        kinds = [part for choice in choices for part in kind_of(choice).split(" | ")]
        return " | ".join(sorted(dict.fromkeys(kinds), key=lambda kind: kind == "None"))
    if "$ref" in schema:
        return f"{schema['$ref'].rpartition('/')[2]} | dict[str, Any]"
    if "enum" in schema:
        return f"Literal[{', '.join(map(repr, schema['enum']))}]"
    if schema["type"] == "array":
        return " | ".join(f"list[{kind}]" for kind in kind_of(schema["items"]).split(" | "))
    if schema["type"] == "object":
        values = schema["additionalProperties"]
        return f"dict[str, {'Any' if values is True else kind_of(values)}]"
    return _KINDS[schema["type"]]


def _named(hint: Any) -> str:
    """Return the source of a configuration's type."""
    for name, choices in (("Runner", Runner), ("KernelSource", KernelSource), ("GenerationConfig", GenerationConfig)):
        if hint is choices:
            return name
    return re.sub(r"\b(typing|pathlib)\.", "", hint.__name__ if isinstance(hint, type) else str(hint))


def _with_default(text: str, default: Any) -> str:
    return text if default is None else f"{text} Default: {default}."


def _docstring(text: str) -> Iterator[str]:
    yield from textwrap.wrap(f'"""{text}"""', 116)


def formatted(source: str) -> str:
    """Return the source as ruff formats it."""
    command = [sys.executable, "-m", "ruff", "format", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True, cwd=PACKAGE).stdout


MODULES = {
    PACKAGE / "api" / "call_options.py": requests_module,
    PACKAGE / "config" / "model_options.py": models_module,
}


if __name__ == "__main__":
    for path, make in MODULES.items():
        if "--write" in sys.argv:
            path.write_text(make())
        else:
            print(make())
