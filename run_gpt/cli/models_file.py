"""Reads the YAML file of `rungpt serve --config` into a server's configuration; an error names the file and the key."""

import json
import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_type_hints

import yaml
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from run_gpt.config import API_KEY_VARIABLE, Option, ServeConfig, ServedModel, options_of
from run_gpt.errors import SetupError
from run_gpt.models import find
from run_gpt.models.paths import is_explicit_path, local_path
from run_gpt.models.sizes import parse_size

UNLOAD_AFTER = 600.0
"""Default of `unload_after` in seconds if several models are served; a single model is never unloaded by default."""

Types = Mapping[str, Any]
"""Type of each key that a mapping in the file may have."""


def _types(config: type[Any]) -> Types:
    """Return the type of each field that has an Option, with the Option's bounds."""
    hints = get_type_hints(config)
    return {name: _type(hints[name], option) for name, option in options_of(config).items()}


def _type(hint: Any, option: Option) -> Any:
    if option.is_size:
        return Annotated[int, BeforeValidator(parse_size)]
    if option.by_position:  # null is no default here
        hint = next(kind for kind in (*get_args(hint), hint) if kind is not NoneType)
    return Annotated[hint, Field(ge=option.least, le=option.most)]


MODEL: Types = {"name": str, **_types(ServedModel)}
"""Keys of one model in the file, with their types; `name` is another name for `model_name`."""
DEFAULTS: Types = {key: kind for key, kind in MODEL.items() if key not in ("name", "model_name", "model_path")}
SERVER: Types = {name: kind for name, kind in _types(ServeConfig).items() if name not in MODEL and name != "api_key"}


_MAYBE_PATHS = ("adapter_name_or_path", "chat_template")


def read_models_file(file: Path) -> ServeConfig:
    """Return the server configuration in the file. Relative paths in it are relative to its folder.

    Raises SetupError, one line with the file and the key, for an unreadable file, an unknown key or a wrong type.
    """
    content = _mapping(_load(file), f"{file}")
    defaults, given = content.pop("defaults", {}), content.pop("models", None)
    server = _settings(content, f"{file}", SERVER)
    defaults = _settings(defaults, f"{file}: defaults", DEFAULTS)
    if not isinstance(given, list) or not given:
        raise SetupError(f"{file}: models: this must be a list with a model or more")
    folder = file.absolute().parent
    models = [
        _model(_model_settings(one, f"{file}: models[{index}]"), defaults, index, len(given), folder)
        for index, one in enumerate(given)
    ]
    return ServeConfig(models=tuple(models), **_placed(server, folder))


def hosting(index: int, count: int, preload: bool | None, unload_after: float | None) -> dict[str, Any]:
    """Return `preload` and `unload_after` of model `index` of `count`, as HostConfig's fields. None means the default.

    By default only the first model is loaded at the start, and each of several is unloaded after UNLOAD_AFTER seconds.
    An `unload_after` of 0 means never.
    """
    if unload_after is None:
        unload_after = UNLOAD_AFTER if count > 1 else 0
    return {"preload": index == 0 if preload is None else preload, "unload_after": unload_after or None}


def _model(own: dict[str, Any], defaults: dict[str, Any], index: int, count: int, folder: Path) -> ServedModel:
    settings = _placed({**defaults, **own}, folder)
    hosted = hosting(index, count, settings.pop("preload", None), settings.pop("unload_after", None))
    return ServedModel(**settings, **hosted)


def _model_settings(given: Any, where: str) -> dict[str, Any]:
    """Return the settings of an entry in the list `models`: a name, or a mapping that contains one."""
    settings = _settings({"name": given} if isinstance(given, str) else given, where, MODEL)
    if "name" in settings and "model_name" in settings:
        raise SetupError(f"{where}: name and model_name are the same: give one of them")
    if "name" in settings:
        settings["model_name"] = settings.pop("name")
    if not settings.get("model_name") and not settings.get("model_path"):
        raise SetupError(f"{where}: a model needs a name, or model_path")
    return settings


def _settings(given: Any, where: str, types: Types) -> dict[str, Any]:
    """Check the keys of a mapping, and convert each value to the type of its key."""
    settings = {}
    for key, value in _mapping(given, where).items():
        if key not in types:
            raise SetupError(f"{where}: {_unknown(key, types)}")
        settings[key] = _value(value, f"{where}: {key}", types[key])
    return settings


def _mapping(given: Any, where: str) -> dict[Any, Any]:
    if not isinstance(given, dict):
        raise SetupError(f"{where}: this must be a mapping of settings, such as `name: smollm2`")
    return dict(given)


def _unknown(key: Any, types: Types) -> str:
    """Return a hint for a key that is not allowed at its place in the file."""
    if key == "api_key":
        return f"a key does not belong in this file: set {API_KEY_VARIABLE}, or give api_key_file"
    if key in SERVER:
        return f"{key} is of the whole server: write it at the top"
    if key in DEFAULTS:
        return f"{key} is of a model: write it beside its name, or under `defaults` for all of them"
    if key in MODEL:
        return f"{key} is of one model: write it in the list `models`"
    known = [*types, *(("defaults", "models") if types is SERVER else ())]
    near = get_close_matches(str(key), known, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
    return f"there is no setting {key!r}; {hint}"


def _value(value: Any, where: str, kind: Any) -> Any:
    """Convert a value by pydantic's strict JSON rules: no text for a number; a list for a tuple, a text for a path."""
    try:
        text = json.dumps(value, default=str)
    except (TypeError, ValueError) as error:
        raise SetupError(f"{where}: this is no plain value: {error}") from None
    try:
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        said = " or ".join(dict.fromkeys(one["msg"].removeprefix("Value error, ") for one in error.errors()))
        raise SetupError(f"{where}: {said[:1].lower()}{said[1:]}, not {value!r}") from None


def _placed(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the settings with relative paths made absolute."""
    placed = dict(settings)
    for key, value in settings.items():
        if isinstance(value, Path):
            placed[key] = Path(_absolute(str(value), folder))
        elif key == "model_path" and value is not None:
            placed[key] = _absolute(value, folder)
        elif (key == "model_name" and not settings.get("model_path")) or key in _MAYBE_PATHS:
            placed[key] = _if_path(value, folder)
        elif key == "adapters" and value is not None:
            placed[key] = {name: _if_path(path, folder) for name, path in value.items()}
    return placed


def _if_path(text: str | None, folder: Path) -> str | None:
    """Make a path absolute; return a catalogue name or a hub id unchanged."""
    if text is None or find(text) is not None:
        return text
    is_path = is_explicit_path(text) or (folder / text).exists()
    return _absolute(text, folder) if is_path else text


def _absolute(text: str, folder: Path) -> str:
    return str(local_path(text)) if text.startswith("~") else os.path.normpath(folder / text)


def _load(file: Path) -> Any:
    try:
        with file.open(encoding="utf-8") as stream:  # YAML's errors contain the stream's name
            return yaml.load(stream, _Loader)
    except (OSError, UnicodeError) as error:
        raise SetupError(f"--config {file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise SetupError(f"--config {file} is no YAML: {' '.join(str(error).split())}") from error


class _Loader(yaml.SafeLoader):
    """YAML loader that rejects duplicate keys. PyYAML's own loader silently keeps the last one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.composer.ComposerError(None, None, f"{key.value!r} is there twice", key.start_mark)
                seen.add(key.value)
        return node
