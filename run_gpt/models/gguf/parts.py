"""A model in GGUF: one file, or the parts of a split one, read as one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from run_gpt.errors import ModelLoadError
from run_gpt.models.gguf.header import Header, TensorEntry, read_header

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"


@dataclass(frozen=True)
class GgufModel:
    """Metadata and tensors of a model, from all of its parts."""

    path: Path
    """The file, or the first part."""
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]

    @property
    def architecture(self) -> str:
        """Name of the model's family in GGUF, such as `llama`; empty if the file does not say it."""
        return str(self.metadata.get("general.architecture", ""))


def model_stem(path: Path) -> str:
    """Return the name of a file without its suffix, and without the number of a part."""
    match = _PART.fullmatch(path.name)
    return match["stem"] if match else path.stem


def part_paths(path: Path) -> list[Path]:
    """Return the paths of all parts, in order, of the model to which the file at `path` belongs; they may be missing.

    A file that is not split is its own only part.
    """
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    count, suffix = int(match["count"]), path.suffix
    return [path.with_name(f"{match['stem']}-{i:05}-of-{count:05}{suffix}") for i in range(1, count + 1)]


def read_parts(path: Path) -> GgufModel:
    """Return the model in the file at `path`, or in all the parts that belong to it.

    Raises ModelLoadError for a part that is missing, damaged or of another model.
    """
    paths = part_paths(path)
    for part in paths:
        if not part.is_file():
            raise ModelLoadError(
                f"{part} is missing: {path.name} is one of {len(paths)} parts of a model; download all of them into "
                "one folder"
            )
    headers = [read_header(part) for part in paths]
    tensors: dict[str, TensorEntry] = {}
    for number, header in enumerate(headers):
        _check_part(header, number, len(headers))
        for tensor in header.tensors:
            if tensor.name in tensors:
                raise _mixed(header, f"it has {tensor.name}, as {tensors[tensor.name].file.name} does")
            tensors[tensor.name] = tensor
    expected = headers[0].metadata.get(_TENSORS, len(tensors))
    if expected != len(tensors):
        raise _mixed(headers[0], f"its parts have {len(tensors)} tensors, and it says {expected}")
    metadata = dict(headers[0].metadata)
    for header in headers[1:]:
        for key, value in header.metadata.items():
            if metadata.setdefault(key, value) != value and key != _NUMBER:
                raise _mixed(header, f"{key} is another than in {headers[0].path.name}")
    return GgufModel(paths[0], metadata, tensors)


def _check_part(header: Header, number: int, count: int) -> None:
    """Raise ModelLoadError if a file is not the part that its name says."""
    says = header.metadata.get(_COUNT, 1) or 1, header.metadata.get(_NUMBER, 0)
    if says == (count, number):
        return
    if count == 1:
        raise ModelLoadError(
            f"{header.path} is part {says[1] + 1} of {says[0]} of a split model: give it its own name again, such as "
            f"{header.path.stem}-{says[1] + 1:05}-of-{says[0]:05}.gguf, beside the other parts"
        )
    raise _mixed(header, f"it says that it is part {says[1] + 1} of {says[0]}")


def _mixed(header: Header, reason: str) -> ModelLoadError:
    return ModelLoadError(f"{header.path} does not fit its name or the parts beside it ({reason}): download all again")
