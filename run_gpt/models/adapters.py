"""Reading of LoRA adapters as PEFT writes them: adapter_config.json and adapter_model.safetensors."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from run_gpt.errors import ModelLoadError

if TYPE_CHECKING:
    import torch

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_KEY = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<part>[AB])(?:\.default)?\.weight")

_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")


AdapterWeights = Mapping[str, "tuple[torch.Tensor, torch.Tensor]"]
"""Weights A [rank, inputs] and B [outputs, rank] by the path of each changed layer, in fp32, with the scale in B."""


def read_adapter(folder: Path, *, allow_pickle: bool = False) -> AdapterWeights:
    """Return the weights of an adapter.

    Raises ModelLoadError for a folder without a LoRA adapter, for an adapter of an unsupported kind, or a damaged file.
    """
    config = _config(folder)
    tensors = _tensors(folder, allow_pickle)
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        match = _KEY.fullmatch(name)
        if match is None:
            raise ModelLoadError(f"{folder}: {name} is not served: only LoRA weights of linear layers are")
        pairs.setdefault(match["path"], {})[match["part"]] = tensor.float()
    if not pairs:
        raise ModelLoadError(f"{folder} holds no LoRA weights")
    return {path: _scaled(folder, config, path, pair) for path, pair in pairs.items()}


def _scaled(folder: Path, config: dict[str, Any], path: str, pair: "dict[str, torch.Tensor]") -> Any:
    a, b = pair.get("A"), pair.get("B")
    if a is None or b is None or a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
        shapes = {part: list(tensor.shape) for part, tensor in pair.items()}
        raise ModelLoadError(f"{folder}: {path} has weights of the shapes {shapes}, which are no A and B")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ModelLoadError(f"{folder}: the weights of {path} hold NaN or infinity")
    rank = _pattern(config, "rank_pattern", path, config["r"])
    if rank != a.shape[0]:
        raise ModelLoadError(f"{folder}: {path} has rank {a.shape[0]}, and {CONFIG} says {rank}")
    alpha = _pattern(config, "alpha_pattern", path, config["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return a.contiguous(), (b * scale).contiguous()


def _pattern(config: dict[str, Any], name: str, path: str, otherwise: Any) -> Any:
    """Return the value for a layer: PEFT matches a key as a regular expression at the end of the layer's path."""
    for key, value in (config.get(name) or {}).items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return otherwise


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text())
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
    except FileNotFoundError as error:
        raise ModelLoadError(f"{folder} holds no LoRA adapter: there is no {CONFIG}") from error
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot read {folder / CONFIG} ({error}): write or fetch it again") from error
    if config.get("peft_type") != "LORA":
        raise ModelLoadError(f"{folder}: peft_type is {config.get('peft_type')!r}, and only LORA is served")
    refused = {
        "use_dora": bool(config.get("use_dora")),
        "bias": config.get("bias", "none") != "none",
        "lora_bias": bool(config.get("lora_bias")),
        "modules_to_save": bool(config.get("modules_to_save")),
        "trainable_token_indices": bool(config.get("trainable_token_indices")),
        "target_parameters": bool(config.get("target_parameters")),
        "layer_replication": bool(config.get("layer_replication")),
        "alora_invocation_tokens": bool(config.get("alora_invocation_tokens")),
        # These methods start from changed weights of the model itself.
        "init_lora_weights": str(config.get("init_lora_weights")).lower().startswith(_CHANGING),
    }
    for name, used in refused.items():
        if used:
            raise ModelLoadError(f"{folder}: {name} = {config[name]!r} in {CONFIG} is not served")
    for name in ("r", "lora_alpha"):
        if not isinstance(config.get(name), int | float) or config[name] <= 0:
            raise ModelLoadError(f"{folder}: {name} = {config.get(name)!r} in {CONFIG} is no positive number")
    return config


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
