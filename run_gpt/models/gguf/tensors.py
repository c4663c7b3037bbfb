"""Tensors of a GGUF file under transformers' names: each of the model's weights, and nothing else."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from run_gpt.errors import ModelLoadError
from run_gpt.models.gguf.keys import architecture_of
from run_gpt.models.gguf.parts import GgufModel
from run_gpt.models.gguf.rotary import FACTORS, LONG, SHORT
from run_gpt.models.gguf.tokenizer import ORIGINAL

_EXPERTS = re.compile(r"(?:model\.)?layers\.(\d+)\.mlp\.experts\.(gate_up_proj|down_proj)")
_OF_EXPERTS = {"gate_up_proj": ("ffn_gate_exps.weight", "ffn_up_exps.weight"), "down_proj": ("ffn_down_exps.weight",)}
_LEAVES = ("weight", "bias")
# Read as metadata, by `rotary`.
_OTHERS = {FACTORS, LONG, SHORT}


def place_tensors(model: GgufModel, parameters: Any) -> dict[str, dict[str, Any]]:
    """Return the index of the weights by parameter: see `gguf_weights`.

    `parameters`: transformers' model on the meta device. Raises ModelLoadError for a tensor that is missing, that the
    model does not have, or of another shape.
    """
    names = tensor_names(model, parameters)
    tied = set(parameters.all_tied_weights_keys)
    index: dict[str, dict[str, Any]] = {}
    for name, parameter in _weights(parameters):
        parts = names.get(name, ())
        missing = [part for part in parts if part not in model.tensors]
        if name in tied and (missing or not parts):
            continue
        if missing or not parts:
            raise ModelLoadError(
                f"{model.path} lacks the tensor {missing[0] if missing else name}: it is not a whole model; download "
                "it again"
            )
        index[name] = _entry(model, name, parts, tuple(parameter.shape))
    _check_all_used(model, index)
    return index


def _weights(parameters: Any) -> Iterable[tuple[str, Any]]:
    """Yield the model's weights by name: parameters, and buffers that a checkpoint holds."""
    yield from parameters.state_dict(keep_vars=True).items()


def tensor_names(model: GgufModel, parameters: Any) -> dict[str, tuple[str, ...]]:
    """Return the names of the file's tensors by parameter."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == model.architecture)
    table = get_tensor_name_map(number, parameters.config.num_hidden_layers)
    found: dict[str, tuple[str, ...]] = {}
    for name, _ in _weights(parameters):
        if match := _EXPERTS.fullmatch(name):
            found[name] = tuple(f"blk.{match[1]}.{part}" for part in _OF_EXPERTS[match[2]])
            continue
        stem, _, leaf = name.rpartition(".")
        stem, suffix = (stem, f".{leaf}") if leaf in _LEAVES else (name, "")
        for known in (stem, stem.partition(".")[2]):  # some families are named without the model's own prefix
            if base := table.get_name(known):
                found[name] = (f"{base}{suffix}",)
                break
    return found


def _entry(model: GgufModel, name: str, parts: tuple[str, ...], shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the index's entry of one weight. Raises ModelLoadError if its shape is not the configuration's."""
    from run_gpt.models.gguf_weights import CHANGES, changed_shape

    change = next(
        (change for pattern, change in architecture_of(model).changes.items() if re.search(pattern, parts[0])), ""
    )
    if len(parts) > 1:
        change = "joined"
    tensors = [model.tensors[part] for part in parts]
    found = changed_shape(change, [tensor.shape for tensor in tensors])
    if found != shape:
        raise ModelLoadError(
            f"{model.path}: the tensor {parts[0]} has the shape {list(found)}, and the metadata say {list(shape)} "
            f"({name}): it is damaged, or of a kind that RunGPT does not read; {ORIGINAL}"
        )
    assert change in CHANGES
    listed = [
        {
            "tensor": tensor.name,
            "type": tensor.kind,
            "shape": list(tensor.shape),
            "file": str(tensor.file.resolve()),
            "offset": tensor.offset,
            "bytes": tensor.bytes,
        }
        for tensor in tensors
    ]
    return {"shape": list(shape), "change": change, "parts": listed}


def _check_all_used(model: GgufModel, index: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ModelLoadError for a tensor that the model has no place for, or of a kind that cannot be read."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    used = {part["tensor"] for entry in index.values() for part in entry["parts"]}
    for name in model.tensors:
        if name not in used | _OTHERS:
            raise ModelLoadError(
                f"{model.path} has the tensor {name}, for which transformers' {architecture_of(model).model_type} has "
                f"no place, so that answers would differ: {ORIGINAL}"
            )
    for kind in {tensor.kind for tensor in model.tensors.values()}:
        number = GGMLQuantizationType[kind]
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[number][1]), dtype=np.uint8), number)
        except NotImplementedError as error:
            raise ModelLoadError(
                f"{model.path} has tensors in {kind}, which the package gguf cannot read: use another quantisation "
                "of this model, such as Q4_K_M or Q8_0"
            ) from error
