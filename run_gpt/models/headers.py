"""Headers of safetensors files: names, types and shapes of a model's weights, read without torch.

A file begins with 8 bytes of length, then a JSON object with an entry for each tensor.
"""

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """Tensor in a file."""

    file: Path
    dtype: str
    """Type as safetensors writes it, such as `BF16`, `F8_E4M3` or `I32`."""
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that are loaded: as transformers, the whole file, else those that the index names.

    Other files, such as `consolidated.safetensors`, are second copies of the weights, or no weights. Raises OSError or
    ValueError for an index that cannot be read.
    """
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if not (folder / INDEX).is_file():
        return []
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return [folder / name for name in sorted(set(index["weight_map"].values()))]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors in the files that are loaded, by name; empty if there are none.

    Raises OSError, ValueError or struct.error for damaged files.
    """
    return {name: tensor for file in weight_files(folder) for name, tensor in _tensors(file)}


def _tensors(file: Path) -> Iterator[tuple[str, StoredTensor]]:
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        if length > file.stat().st_size:
            raise ValueError(f"{file} is cut short")
        header = json.loads(opened.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            yield name, StoredTensor(file, entry["dtype"], tuple(entry["shape"]))
