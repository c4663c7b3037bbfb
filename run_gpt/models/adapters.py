"""Reading of LoRA adapters as PEFT writes them: adapter_config.json and adapter_model.safetensors."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from run_gpt.errors import ModelLoadError
from run_gpt.models.adapter_base import AdapterBase
from run_gpt.models.adapter_config import CONFIG, AdapterConfig, read_adapter_config

if TYPE_CHECKING:
    import torch

WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
_KEY = re.compile(
    r"base_model\.model\.(?P<path>.+)\.lora_(?:(?P<part>[AB])(?:\.default)?\.weight|embedding_(?P<rows>[AB])(?:\.default)?)"
)
_COPY = re.compile(r"base_model\.model\.(?P<name>.+\.(?:weight|bias))")
"""Weight of the model itself: PEFT saves those of the embedding and the output layer if the adapter changes either."""


AdapterWeights = Mapping[str, "tuple[torch.Tensor, torch.Tensor]"]
"""Weights A [rank, inputs] and B [outputs, rank] by the path of each changed layer, in fp32, with the scale in B.
The inputs of an embedding are its rows."""


def read_adapter(folder: Path, *, base: AdapterBase | None = None, allow_pickle: bool = False) -> AdapterWeights:
    """Return the weights of an adapter.

    `base`: the model that it is for; without it, missing layers are not found, and copies of the model's own weights
    are refused. Raises ModelLoadError for a folder without a LoRA adapter, an adapter of an unsupported kind or of
    another model, or a damaged file.
    """
    config = read_adapter_config(folder)
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in _tensors(folder, allow_pickle).items():
        match = _KEY.fullmatch(key)
        if match is None:
            _check_copy(folder, key, tensor, base)
            continue
        pair, part = pairs.setdefault(match["path"], {}), match["part"] or match["rows"]
        if part in pair:
            raise ModelLoadError(
                f"{folder}: {WEIGHTS} has two weights {part} of {match['path']}: save the adapter anew"
            )
        pair[part] = tensor.float()
    if not pairs:
        raise ModelLoadError(f"{folder} holds no LoRA weights")
    _check_targets(folder, config, pairs, base)
    return {path: _scaled(folder, config, path, pair) for path, pair in pairs.items()}


def adapter_paths(folder: Path) -> list[str]:
    """Return the paths of the layers that an adapter changes, by the header of its file; empty if it has none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS, framework="pt") as opened:
            return [match["path"] for key in opened.keys() if (match := _KEY.fullmatch(key))]  # noqa: SIM118
    except (SafetensorError, OSError):  # read_adapter reports it
        return []


def _check_copy(folder: Path, key: str, tensor: "torch.Tensor", base: AdapterBase | None) -> None:
    """Raise ModelLoadError unless a tensor, which belongs to no LoRA layer, is a copy of the model's own weight."""
    match = _COPY.fullmatch(key)
    name = None if match is None else match["name"].replace(".base_layer.", ".")
    if name is None or base is None or not base.has(name):
        raise ModelLoadError(
            f"{folder}: {key} is not served: only LoRA weights of linear layers and embeddings are; merge the adapter "
            "into the model"
        )
    if not base.equals(name, tensor):
        raise ModelLoadError(
            f"{folder}: {key} is not the served model's {name}: serve the model that the adapter was made for, merge "
            "it into that, or save it with save_embedding_layers=False if the served model's is meant"
        )


def _check_targets(folder: Path, config: AdapterConfig, pairs: Mapping[str, Any], base: AdapterBase | None) -> None:
    """Raise ModelLoadError if the config's layers, those of the file and those of the model are not the same."""
    for path in pairs:
        if not config.takes(path):
            raise ModelLoadError(
                f"{folder}: {WEIGHTS} has weights for {path}, which {CONFIG} does not target: correct it"
            )
    if base is None:
        return
    for path in pairs:
        if path not in base.layers:
            raise ModelLoadError(f"{folder}: this model has no layer {path}: the adapter was made for another model")
    for path, linear in base.layers.items():
        if path not in pairs and config.takes(path, linear=linear):
            raise ModelLoadError(
                f"{folder}: {CONFIG} targets {path}, for which {WEIGHTS} has no weights: the adapter was made for "
                "another model, or its file is not whole"
            )
    for name in config.targets if isinstance(config.targets, tuple) else ():
        if not any(path == name or path.endswith(f".{name}") for path in base.layers):
            raise ModelLoadError(
                f"{folder}: {CONFIG} targets {name}, which this model does not have: the adapter was made for another "
                "model"
            )


def _scaled(folder: Path, config: AdapterConfig, path: str, pair: "dict[str, torch.Tensor]") -> Any:
    a, b = pair.get("A"), pair.get("B")
    if a is None or b is None or a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
        shapes = {part: list(tensor.shape) for part, tensor in pair.items()}
        raise ModelLoadError(f"{folder}: {path} has weights of the shapes {shapes}, which are no A and B")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ModelLoadError(f"{folder}: the weights of {path} hold NaN or infinity")
    if (rank := config.rank_of(path)) != a.shape[0]:
        raise ModelLoadError(f"{folder}: {path} has rank {a.shape[0]}, and {CONFIG} says {rank}")
    return a.contiguous(), (b * config.scale(path)).contiguous()


def _tensors(folder: Path, allow_pickle: bool) -> "dict[str, torch.Tensor]":
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / WEIGHTS
    if not file.is_file() and (folder / PICKLED).is_file() and allow_pickle:
        file = folder / PICKLED
    try:
        if file.name == PICKLED:
            return dict(torch.load(file, map_location="cpu", weights_only=True))
        return load_file(file)
    except FileNotFoundError as error:
        raise ModelLoadError(
            f"{folder} has no {WEIGHTS}; pickled weights are loaded only with allow_pickle=True (--allow-pickle)"
        ) from error
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ModelLoadError(f"cannot read {file} ({str(error).splitlines()[0]}): fetch it again") from error
    except Exception as error:  # torch.load raises its unpickler's errors
        raise ModelLoadError(f"cannot read {file} ({type(error).__name__}): fetch it again") from error
