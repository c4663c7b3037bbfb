"""Values of a GGUF file's tensors, and of its metadata, as numbers."""

from collections.abc import Mapping
from typing import Any

from run_gpt.models.gguf.header import TensorEntry

_SAMPLING = "general.sampling."
SAMPLING_NAMES = {"temp": "temperature", "penalty_repeat": "repetition_penalty"}
"""transformers' names of settings that have another name in GGUF."""


def shortest(value: Any) -> Any:
    """Return a number of 32 bits as the one that was meant: 1e-5, not 9.999999747378752e-06; another value as it is."""
    import numpy as np

    return float(str(np.float32(value))) if isinstance(value, float) else value


def sampling_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sampling defaults in a file's metadata, under the names that transformers has for them."""
    found = {key.removeprefix(_SAMPLING): value for key, value in metadata.items() if key.startswith(_SAMPLING)}
    return {SAMPLING_NAMES.get(name, name): shortest(value) for name, value in found.items()}


def read_vector(entry: TensorEntry) -> list[float]:
    """Return the values of a tensor of one dimension."""
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    data = np.fromfile(entry.file, dtype=np.uint8, count=entry.bytes, offset=entry.offset)
    values: list[float] = dequantize(data, GGMLQuantizationType[entry.kind]).reshape(-1).tolist()
    return values
