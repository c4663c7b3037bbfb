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
# The engine's own 4 and 8 bits have the grids of Q4_0, Q4_1 and Q8_0. Other kinds have formats of the native kernels
# for a matrix of their own. The rest fits 4 bits with a small loss if it has no more bits, else 8 bits.
_HELD_AS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
_IN_4_BITS = {
    *("Q4_0", "Q4_1", "Q4_K", "Q2_K", "Q3_K", "IQ4_NL", "IQ4_XS"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0"),
}
_OWN_BITS = {
    **{"Q5_0": "q5", "Q5_1": "q5", "Q2_K": "q2_k", "Q3_K": "q3_k", "Q4_K": "q4_k", "Q5_K": "q5_k", "Q6_K": "q6_k"},
    **{"IQ4_NL": "iq4", "IQ4_XS": "iq4_xs"},
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


_OF_ROWS = ("", "pairs_q", "pairs_k", "by_head")
"""Changes that put rows in another order, or none."""
_TURNED = "turned"
"""Change of weights that transformers has as [inputs, outputs]."""


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

    def __init__(self, entry: Mapping[str, Any], config: Mapping[str, Any], unread: Callable[[str], bool]):
        """Create a tensor. If `unread(kind)`, a matrix is returned unread; the caller takes blocks, slices of rows, or
        nothing."""
        self._entry, self._config, self._unread = entry, config, unread
        self.shape = tuple(entry["shape"])
        self.kind = str(entry["parts"][0]["type"]) if entry["change"] in (*_OF_ROWS, _TURNED) else ""
        """Type of its blocks in the file; empty if the weight has not the same blocks."""

    def __getitem__(self, index: Any) -> Any:
        """Return some rows (a slice) or all (an ellipsis), in fp32. Raises ModelLoadError if the file lacks them."""
        import numpy as np
        import torch

        parts = self._entry["parts"]
        if isinstance(index, slice):
            return torch.from_numpy(_read(parts[0], *index.indices(self.shape[0])[:2]))
        if len(self.shape) > 1 and self._unread(self.kind):
            return self
        read = [_read(part, 0, part["shape"][0]) for part in parts]
        return torch.from_numpy(np.ascontiguousarray(CHANGES[self._entry["change"]](read, self._config)))

    def blocks(self) -> Any:
        """Return the file's bytes, mapped: uint8 [outputs, bytes of a row]. Raises ModelLoadError if it lacks them."""
        import numpy as np

        (part,) = self._entry["parts"]
        rows, change = part["shape"][0], self._entry["change"]
        if Path(part["file"]).stat().st_size < part["offset"] + part["bytes"]:
            raise _cut_short(part)
        mapped = np.memmap(part["file"], np.uint8, "r", part["offset"], (rows, part["bytes"] // rows))
        return mapped if change == _TURNED else CHANGES[change]([mapped], self._config)

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
        raise _cut_short(part)
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


def _cut_short(part: Mapping[str, Any]) -> ModelLoadError:
    return ModelLoadError(f"{part['file']} is cut short: {part['tensor']} is not whole; download it again")


def gguf_weights(
    folder: Path, unread: Callable[[str, str, bool], bool] = lambda name, kind, large: False
) -> dict[str, GgufTensor] | None:
    """Return the weights that `folder` refers to, by parameter; None if it holds its weights itself.

    `unread`: see GgufTensor; it gets the parameter's name, the type of its blocks, and if it is one that is stored as
    it is and that in fp32 may be larger than all the rest of a packed model. Raises ModelLoadError if a GGUF file no
    longer exists.
    """
    if not (folder / _INDEX).is_file():
        return None
    index = json.loads((folder / _INDEX).read_text())
    for file in index["files"]:
        if not Path(file).is_file():
            raise ModelLoadError(f"{file} has gone, which holds the weights: put it back, or give its new path")
    config = json.loads((folder / "config.json").read_text())
    return {
        name: GgufTensor(entry, config, partial(_unread, unread, name, entry["parts"][0]["tensor"] in _LARGE))
        for name, entry in index["tensors"].items()
    }


def _unread(unread: Callable[[str, str, bool], bool], name: str, large: bool, kind: str) -> bool:
    return unread(name, kind, large)


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

    The former is None if there are no matrices. The latter is a format of the native kernels where one holds the
    file's blocks as they are.
    """
    held: dict[str, int] = {}
    each: dict[str, str] = {}
    for name, entry in tensors.items():
        if len(entry["shape"]) > 1:
            kind = entry["parts"][0]["type"]
            precision = _HELD_AS.get(kind, "bit4" if kind in _IN_4_BITS else "bit8")
            own = len(entry["shape"]) == 2 and entry["change"] in (*_OF_ROWS, _TURNED)
            each[name] = _OWN_BITS.get(kind, precision) if own else precision
            held[precision] = held.get(precision, 0) + sum(part["bytes"] for part in entry["parts"])
    return max(held, key=lambda precision: held[precision], default=None), each
