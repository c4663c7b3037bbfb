"""Settings of a LoRA adapter, adapter_config.json as PEFT writes it: each key is applied, harmless, or refused."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from run_gpt.errors import ModelLoadError

CONFIG = "adapter_config.json"

_APPLIED = (
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules"),
    *("exclude_modules", "layers_to_transform", "layers_pattern"),
)
_HARMLESS = (
    *("auto_mapping", "base_model_name_or_path", "revision", "peft_version", "inference_mode", "runtime_config"),
    *("fan_in_fan_out", "merge_weights", "megatron_core", "qalora_group_size"),  # only for merges or for other keys
    *("lora_dropout", "eva_config", "corda_config", "lora_ga_config", "loftq_config"),  # only for training
)
_ALLOWED: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "task_type": (None, "CAUSAL_LM"),
    # Other methods start from changed weights of the model itself.
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
}
_OFF: tuple[Any, ...] = (None, False, "", [], {})
"""Values of every other key, also of those that PEFT will add: the kind of adapter that it stands for is not used."""


@dataclass(frozen=True)
class AdapterConfig:
    """Settings of an adapter that change answers."""

    rank: int
    alpha: float
    root_scale: bool
    """True if the scale is alpha / sqrt(rank), else it is alpha / rank."""
    ranks: Mapping[str, int]
    """Ranks of some layers, by regular expressions for the end of their paths."""
    alphas: Mapping[str, float]
    targets: str | tuple[str, ...]
    """Regular expression for the whole path of a layer, or ends of paths."""
    excluded: str | tuple[str, ...]
    """Layers that are left out, in the same forms."""
    layers: tuple[int, ...]
    """Numbers of the changed layers; empty: all."""
    layers_pattern: tuple[str, ...]
    """Names of the lists that these numbers count; empty: any list."""
    base: str | None
    """Name or path of the model that the adapter was made for."""

    def scale(self, path: str) -> float:
        """Return the factor of a layer's addition."""
        alpha, rank = _matching(self.alphas, path, self.alpha), self.rank_of(path)
        return alpha / (math.sqrt(rank) if self.root_scale else rank)

    def rank_of(self, path: str) -> int:
        """Return the rank of a layer."""
        return int(_matching(self.ranks, path, self.rank))

    def takes(self, path: str, *, linear: bool = True) -> bool:
        """Return True if the adapter changes the layer at this path. `linear`: it is linear, and not the output."""
        if self.excluded and _names(self.excluded, path):
            return False
        if isinstance(self.targets, str):
            return linear if self.targets.lower() == "all-linear" else _names(self.targets, path)
        exactly = path in self.targets
        return exactly or (_names(self.targets, path) and (not self.layers or self._number(path) in self.layers))

    def _number(self, path: str) -> int | None:
        """Return the number of the layer in the first list of the path, as PEFT finds it."""
        patterns = [rf"(?:^|.*?\.){name}\.(?P<number>\d+)\." for name in self.layers_pattern]
        for pattern in patterns or [r".*?\.[^.]*\.(?P<number>\d+)\."]:
            if match := re.match(pattern, path):
                return int(match["number"])
        return None


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Return the settings of the adapter in a folder.

    Raises ModelLoadError for a folder without an adapter, and for a setting that is not served, by its name.
    """
    config = _json(folder)
    if config.get("peft_type") != "LORA":
        raise ModelLoadError(f"{folder}: peft_type is {config.get('peft_type')!r}, and only LORA is served")
    for key, value in config.items():
        allowed = _ALLOWED.get(key, _OFF)
        if key not in _APPLIED and key not in _HARMLESS and not any(value is it or value == it for it in allowed):
            raise ModelLoadError(f"{folder}: {key} = {value!r} in {CONFIG} is not served: merge it into the model")
    take = _Reader(folder, config)
    read = AdapterConfig(
        rank=take("r", 8, _is_rank),
        alpha=take("lora_alpha", 8, _is_number),
        root_scale=take("use_rslora", False, lambda value: isinstance(value, bool)),
        ranks=take("rank_pattern", {}, lambda value: _is_pattern(value, _is_rank)),
        alphas=take("alpha_pattern", {}, lambda value: _is_pattern(value, _is_number)),
        targets=_frozen(take("target_modules", "", lambda value: bool(value) and _is_names(value))),
        excluded=_frozen(take("exclude_modules", (), _is_names)),
        layers=_frozen(take("layers_to_transform", (), _is_numbers)),
        layers_pattern=_frozen(take("layers_pattern", (), _is_names), whole=True),
        base=config.get("base_model_name_or_path") or None,
    )
    if isinstance(read.targets, str) and (read.layers or read.layers_pattern):
        raise ModelLoadError(f"{folder}: layers_to_transform in {CONFIG} needs a list of target_modules, not a text")
    return read


def refuse_adapter(folder: Path) -> None:
    """Raise ModelLoadError if a model's folder holds an adapter, which transformers would add to the model."""
    if not (folder / CONFIG).exists():
        return
    if (folder / "config.json").exists():
        raise ModelLoadError(
            f"{folder} holds a model and a LoRA adapter ({CONFIG}): move the adapter's files to a folder of their own, "
            "and serve it with --adapter FOLDER, or the model without it"
        )
    base = _json(folder).get("base_model_name_or_path") or "the model that it was made for"
    raise ModelLoadError(f"{folder} is a LoRA adapter and not a model: serve {base} with --adapter {folder}")


@dataclass(frozen=True)
class _Reader:
    folder: Path
    config: Mapping[str, Any]

    def __call__(self, key: str, default: Any, suits: Callable[[Any], bool]) -> Any:
        """Return the value of a key, or its default in PEFT. Raises ModelLoadError for a value that does not suit."""
        value = default if self.config.get(key) is None else self.config[key]
        if not suits(value):
            raise ModelLoadError(
                f"{self.folder}: {key} = {value!r} in {CONFIG} is no value that PEFT knows: correct it"
            )
        return value


def _json(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
    except FileNotFoundError as error:
        raise ModelLoadError(f"{folder} holds no LoRA adapter: there is no {CONFIG}") from error
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot read {folder / CONFIG} ({error}): write or fetch it again") from error
    return config


def _matching(values: Mapping[str, float], path: str, otherwise: float) -> float:
    """Return the value for a layer: PEFT matches a key as a regular expression at the end of the layer's path."""
    return next((value for key, value in values.items() if re.match(rf"(.*\.)?({key})$", path)), otherwise)


def _names(names: str | tuple[str, ...], path: str) -> bool:
    """Return True if PEFT finds a path by these names: a regular expression, or ends of paths."""
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names)


def _frozen(value: Any, *, whole: bool = False) -> Any:
    if isinstance(value, list | tuple):
        return tuple(value)
    return (value,) if whole or isinstance(value, int) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _is_rank(value: Any) -> bool:
    return _is_number(value) and isinstance(value, int)


def _is_numbers(value: Any) -> bool:
    numbers = value if isinstance(value, list | tuple) else [value]
    return all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)


def _is_names(value: Any) -> bool:
    if isinstance(value, str):
        return _is_expression(value)
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _is_pattern(value: Any, suits: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(_is_expression(key) and suits(it) for key, it in value.items())


def _is_expression(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True
