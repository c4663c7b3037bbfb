"""Context length of a model by its configuration: the positions of its training, times the scaling of its rotary ones.

Importing this imports no torch.
"""

from collections.abc import Iterator, Mapping
from typing import Any

_LENGTHS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx"),
    *("context_length", "model_max_length"),
)
_SCALED = ("default", "llama3", "longrope", "su", "proportional")
"""Kinds of rotary embeddings for which `max_position_embeddings` is the scaled length already."""
_SCALED_FAMILIES = ("gemma3",)
"""Families that write the scaled length with each kind, by the beginning of their names."""


def context_length(config: Mapping[str, Any]) -> int | None:
    """Return the number of tokens of prompt and answer together, by the content of config.json; None: not known.

    Linear, dynamic and YaRN scaling multiply the length before them, as vLLM does.
    """
    config = config.get("text_config") or config
    lengths = (config.get(name) for name in _LENGTHS)
    length = next((length for length in lengths if isinstance(length, int) and length > 0), None)
    if length is None or str(config.get("model_type")).startswith(_SCALED_FAMILIES):
        return length
    scaled = (_scaled(config, parameters, length) for parameters in rotary_parameters(config))
    return max((one for one in scaled if one is not None), default=length)


def rotary_parameters(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the parameters of the rotary embeddings of a configuration: one, or one for each kind of layer."""
    found = config.get("rope_parameters") or config.get("rope_scaling")
    if isinstance(found, Mapping):
        nested = [value for value in found.values() if isinstance(value, Mapping)]
        yield from nested or [found]


def rotary_kind(parameters: Mapping[str, Any]) -> str:
    """Return the name of a rotary embedding's kind."""
    return str(parameters.get("rope_type") or parameters.get("type") or "default")


def _scaled(config: Mapping[str, Any], parameters: Mapping[str, Any], length: int) -> int | None:
    """Return the length after scaling; None if this kind does not change it."""
    factor = parameters.get("factor")
    if rotary_kind(parameters) in _SCALED or isinstance(factor, bool) or not isinstance(factor, int | float):
        return None
    name = "original_max_position_embeddings"
    return int(factor * (parameters.get(name) or config.get(name) or length))
