"""Weights of a GGUF file under transformers' names, each read from its place in the file when it is needed."""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from run_gpt.errors import ModelLoadError

_INDEX = "weights.json"
_ROWS_AT_ONCE = 4096
_LARGE = ("token_embd.weight", "output.weight")
# Those of transformers' conversions from a tensor of the file to one of the model that need no other tensor.
_SIMPLE = ("TensorProcessor", "LlamaTensorProcessor", "Gemma2TensorProcessor", "BloomTensorProcessor")
# The engine's own 4 and 8 bits have the grids of Q4_0, Q4_1 and Q8_0, and nearly match that of Q4_K. Kinds with fewer
# bits fit 4 bits with a small loss; kinds with more bits, or with levels that are not even, fit 8 bits.
_HELD_AS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
_IN_4_BITS = {
    *("Q4_0", "Q4_1", "Q4_K", "Q2_K", "Q3_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0"),
}


class GgufTensor:
    """One tensor of the file, with the interface of a checkpoint's lazy tensors in transformers."""

    def __init__(self, file: Path, entry: Mapping[str, Any], processor: Any, in_parts: Callable[[], bool]):
        """Create a tensor. If `in_parts()`, a large tensor is returned unread, and the caller takes slices of rows."""
        self._file, self._entry, self._processor, self._in_parts = file, entry, processor, in_parts
        self.shape = tuple(entry["shape"])

    def __getitem__(self, index: Any) -> Any:
        """Return some rows (a slice) or all (an ellipsis), in fp32. Raises ModelLoadError if the file lacks them."""
        import numpy as np
        import torch

        if isinstance(index, slice):
            return torch.from_numpy(self._read(*index.indices(self.shape[0])[:2]))
        # No processor changes these, and in fp32 one of them may be larger than all the rest of a packed model.
        if self._entry["tensor"] in _LARGE and self._in_parts():
            return self
        weights = self._processor.process(self._read(0, self.shape[0]), self._entry["tensor"]).weights
        return torch.from_numpy(np.ascontiguousarray(weights))

    def __len__(self) -> int:
        return int(self.shape[0])

    def to(self, **_: Any) -> "GgufTensor":
        """Return the tensor itself, since it stays in the file: see torch.Tensor.to."""
        return self

    def dim(self) -> int:
        """See torch.Tensor.dim."""
        return len(self.shape)

    def _read(self, start: int, end: int) -> Any:
        import numpy as np
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        entry, kind = self._entry, GGMLQuantizationType[self._entry["type"]]
        row = entry["bytes"] // self.shape[0]
        wanted = (end - start) * row
        data = np.fromfile(self._file, dtype=np.uint8, count=wanted, offset=entry["offset"] + start * row)
        if len(data) != wanted:
            raise ModelLoadError(f"{self._file} is cut short: {entry['tensor']} is not whole; download it again")
        values = np.empty((end - start, *self.shape[1:]), dtype=np.float32)
        rows = data.reshape(end - start, -1) if len(self.shape) > 1 else data
        for first in range(0, end - start, _ROWS_AT_ONCE) if len(self.shape) > 1 else ():
            part = slice(first, first + _ROWS_AT_ONCE)
            values[part] = dequantize(rows[part], kind).reshape(values[part].shape)
        return values if len(self.shape) > 1 else dequantize(rows, kind)


def gguf_weights(folder: Path, in_parts: Callable[[str], bool] = lambda name: False) -> dict[str, GgufTensor] | None:
    """Return the weights that `folder` refers to, by parameter; None if it holds its weights itself.

    `in_parts`: see GgufTensor. Raises ModelLoadError if the GGUF file no longer exists.
    """
    if not (folder / _INDEX).is_file():
        return None
    index = json.loads((folder / _INDEX).read_text())
    file = Path(index["file"])
    if not file.is_file():
        raise ModelLoadError(f"{file} has gone, which holds the weights: put it back, or give its new path")
    config = json.loads((folder / "config.json").read_text())
    processor = _processor(index["architecture"])(config=config)
    return {
        name: GgufTensor(file, entry, processor, partial(in_parts, name)) for name, entry in index["tensors"].items()
    }


def gguf_shapes(folder: Path) -> dict[str, list[int]]:
    """Return the shapes of the weights that `folder` refers to, by parameter; empty if it refers to none."""
    if not (folder / _INDEX).is_file():
        return {}
    return {name: entry["shape"] for name, entry in json.loads((folder / _INDEX).read_text())["tensors"].items()}


def gguf_types(folder: Path) -> Counter[str]:
    """Return the count of weights of each of GGUF's types that `folder` refers to; empty if it refers to none."""
    counts: Counter[str] = Counter()
    if (folder / _INDEX).is_file():
        for entry in json.loads((folder / _INDEX).read_text())["tensors"].values():
            counts[entry["type"]] += math.prod(entry["shape"])
    return counts


def write_index(gguf: Path, folder: Path, model: Any) -> bool:
    """Write an index into `folder` with the places of the weights of `model` (on the meta device) in the file.

    Returns False, and writes nothing, if the file does not have each weight as one tensor: then it must be converted.
    """
    from gguf import GGUFReader
    from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

    reader = GGUFReader(gguf)
    architecture = reader.fields["general.architecture"].contents()
    processor = _processor(architecture)
    if processor.__name__ not in _SIMPLE:
        return False
    names = get_gguf_hf_weights_map(model, processor(config=model.config.to_dict()))
    tensors = {}
    for tensor in reader.tensors:
        if tensor.name in names:
            tensors[names[tensor.name]] = {
                "tensor": tensor.name,
                "type": tensor.tensor_type.name,
                "shape": [int(size) for size in reversed(tensor.shape)],
                "offset": int(tensor.data_offset),
                "bytes": int(tensor.n_bytes),
            }
    tied = set(model.all_tied_weights_keys)
    if {name for name, _ in model.named_parameters()} - tied - tensors.keys():
        return False
    index = {"file": str(gguf.resolve()), "architecture": architecture, "tensors": tensors}
    (folder / _INDEX).write_text(json.dumps(index))
    return True


def held_precisions(gguf: Path, folder: Path) -> tuple[str | None, dict[str, str]]:
    """Return the engine's precision that suits most of the file, and that of each matrix in the index of `folder`.

    The former is None if the file has no matrices.
    """
    from gguf import GGUFReader

    held: dict[str, int] = {}
    for tensor in GGUFReader(gguf).tensors:
        if len(tensor.shape) > 1:
            precision = _held_as(tensor.tensor_type.name)
            held[precision] = held.get(precision, 0) + int(tensor.n_bytes)
    if not (folder / _INDEX).is_file():
        each = {}
    else:
        tensors = json.loads((folder / _INDEX).read_text())["tensors"]
        each = {name: _held_as(entry["type"]) for name, entry in tensors.items() if len(entry["shape"]) > 1}
    return max(held, key=lambda precision: held[precision], default=None), each


def _held_as(kind: str) -> str:
    return _HELD_AS.get(kind, "bit4" if kind in _IN_4_BITS else "bit8")


def _processor(architecture: str) -> Any:
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    return TENSOR_PROCESSORS.get(architecture, TensorProcessor)
