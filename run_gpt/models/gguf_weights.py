"""Weights of GGUF files under transformers' names, each read from its place in a file when it is needed."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from run_gpt.errors import ModelLoadError

_INDEX = "weights.json"
_VALUES_AT_ONCE = 1 << 18  # what a core's cache holds
_LARGE = ("token_embd.weight", "output.weight")
# The engine's own 4 and 8 bits have the grids of Q4_0, Q4_1 and Q8_0, and nearly match that of Q4_K. Kinds with fewer
# bits fit 4 bits with a small loss; kinds with more bits, or with levels that are not even, fit 8 bits.
_HELD_AS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
_IN_4_BITS = {
    *("Q4_0", "Q4_1", "Q4_K", "Q2_K", "Q3_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0"),
}


def _pairs(values: Any, heads: int) -> Any:
    """Return rows of queries or keys with the halves of each head apart, which the file has in pairs."""
    size = values.shape[0] // heads
    return values.reshape(heads, size // 2, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _by_head(values: Any, heads: int) -> Any:
    """Return rows of queries, keys and values head by head, which the file has one kind after the other."""
    size = values.shape[0] // heads // 3
    return values.reshape(3, heads, size, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)


def _log_negative(values: Any) -> Any:
    import numpy as np

    return np.log(-values)


def _joined(parts: Sequence[Any]) -> Any:
    import numpy as np

    return np.concatenate(parts, axis=1)


Change = Callable[[Sequence[Any], Mapping[str, Any]], Any]
"""Function from the arrays of a weight's tensors, and the configuration, to the weight."""

CHANGES: Mapping[str, Change] = {
    "": lambda parts, config: parts[0],
    "joined": lambda parts, config: _joined(parts),
    "pairs_q": lambda parts, config: _pairs(parts[0], config["num_attention_heads"]),
    "pairs_k": lambda parts, config: _pairs(parts[0], config["num_key_value_heads"]),
    "by_head": lambda parts, config: _by_head(parts[0], config["n_head"]),
    "minus_one": lambda parts, config: parts[0] - 1,
    "turned": lambda parts, config: parts[0].T,
    "middle": lambda parts, config: parts[0][:, None],
    "one_row": lambda parts, config: parts[0].reshape(1, -1),
    "log_negative": lambda parts, config: _log_negative(parts[0]),
}
"""Function that undoes a change of the conversion to GGUF, by name."""


def changed_shape(change: str, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape of a weight after a change of its tensors."""
    (first, *rest) = shapes
    if change == "joined":
        fits = all(len(shape) == 3 and (shape[0], shape[2]) == (first[0], first[2]) for shape in rest)
        return (first[0], sum(shape[1] for shape in shapes), *first[2:]) if fits else first
    if change == "turned":
        return tuple(reversed(first))
    if change == "middle":
        return (first[0], 1, *first[1:])
    return (1, prod(first)) if change == "one_row" else first


class GgufTensor:
    """One weight in the files, with the interface of a checkpoint's lazy tensors in transformers."""

    def __init__(self, entry: Mapping[str, Any], config: Mapping[str, Any], unread: Callable[[], bool]):
        """Create a tensor. If `unread()`, a matrix is returned unread; the caller takes slices of rows, or nothing."""
        self._entry, self._config, self._unread = entry, config, unread
        self.shape = tuple(entry["shape"])

    def __getitem__(self, index: Any) -> Any:
        """Return some rows (a slice) or all (an ellipsis), in fp32. Raises ModelLoadError if the file lacks them."""
        import numpy as np
        import torch

        parts = self._entry["parts"]
        if isinstance(index, slice):
            return torch.from_numpy(_read(parts[0], *index.indices(self.shape[0])[:2]))
        if len(self.shape) > 1 and self._unread():
            return self
        read = [_read(part, 0, part["shape"][0]) for part in parts]
        return torch.from_numpy(np.ascontiguousarray(CHANGES[self._entry["change"]](read, self._config)))

    def __len__(self) -> int:
        return int(self.shape[0])

    def to(self, **_: Any) -> "GgufTensor":
        """Return the tensor itself, since it stays in the file: see torch.Tensor.to."""
        return self

    def dim(self) -> int:
        """See torch.Tensor.dim."""
        return len(self.shape)


def _read(part: Mapping[str, Any], start: int, end: int) -> Any:
    """Return rows of a tensor of the file."""
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    shape, kind = part["shape"], GGMLQuantizationType[part["type"]]
    row = part["bytes"] // shape[0]
    wanted = (end - start) * row
    data = np.fromfile(part["file"], dtype=np.uint8, count=wanted, offset=part["offset"] + start * row)
    if len(data) != wanted:
        raise ModelLoadError(f"{part['file']} is cut short: {part['tensor']} is not whole; download it again")
    if len(shape) == 1:
        return dequantize(data, kind)
    values = np.empty((end - start, *shape[1:]), dtype=np.float32)
    rows = data.reshape(end - start, -1)
    count = max(1, _VALUES_AT_ONCE // prod(shape[1:]))
    for first in range(0, end - start, count):
        several = slice(first, first + count)
        # As one row: gguf's own groups of 16 rows are small in a small model.
        values[several] = dequantize(rows[several].reshape(-1), kind).reshape(values[several].shape)
    return values


def gguf_weights(
    folder: Path, unread: Callable[[str, bool], bool] = lambda name, large: False
) -> dict[str, GgufTensor] | None:
    """Return the weights that `folder` refers to, by parameter; None if it holds its weights itself.

    `unread`: see GgufTensor; it gets the parameter's name, and if it is one that is stored as it is and that in fp32
    may be larger than all the rest of a packed model. Raises ModelLoadError if a GGUF file no longer exists.
    """
    if not (folder / _INDEX).is_file():
        return None
    index = json.loads((folder / _INDEX).read_text())
    for file in index["files"]:
        if not Path(file).is_file():
            raise ModelLoadError(f"{file} has gone, which holds the weights: put it back, or give its new path")
    config = json.loads((folder / "config.json").read_text())
    return {
        name: GgufTensor(entry, config, partial(unread, name, entry["parts"][0]["tensor"] in _LARGE))
        for name, entry in index["tensors"].items()
    }


def gguf_sources(folder: Path) -> list[Path]:
    """Return the GGUF files that hold the weights of `folder`; empty if it holds its weights itself."""
    if not (folder / _INDEX).is_file():
        return []
    return [Path(file) for file in json.loads((folder / _INDEX).read_text())["files"]]


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
            counts[entry["parts"][0]["type"]] += prod(entry["shape"])
    return counts


def write_index(folder: Path, tensors: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the places of the weights into `folder`: see `gguf.tensors.place_tensors`."""
    files = sorted({part["file"] for entry in tensors.values() for part in entry["parts"]})
    (folder / _INDEX).write_text(json.dumps({"files": files, "tensors": tensors}))


def held_precisions(tensors: Mapping[str, Mapping[str, Any]]) -> tuple[str | None, dict[str, str]]:
    """Return the engine's precision that suits most of the weights, and that of each matrix, by parameter.

    The former is None if there are no matrices.
    """
    held: dict[str, int] = {}
    each: dict[str, str] = {}
    for name, entry in tensors.items():
        if len(entry["shape"]) > 1:
            precision = each[name] = _held_as(entry["parts"][0]["type"])
            held[precision] = held.get(precision, 0) + sum(part["bytes"] for part in entry["parts"])
    return max(held, key=lambda precision: held[precision], default=None), each


def _held_as(kind: str) -> str:
    return _HELD_AS.get(kind, "bit4" if kind in _IN_4_BITS else "bit8")
