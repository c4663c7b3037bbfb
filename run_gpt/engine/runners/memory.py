"""Size of a token in the KV cache, and number of tokens that fit the free memory."""

import logging
from typing import Any

from run_gpt.process.devices import left_bytes

_log = logging.getLogger("run_gpt")

SHARE = 0.5
"""Share of the free memory for the cache; the rest is for a step's own tensors, and for other processes."""


def cache_bytes_per_token(model: Any) -> int:
    """Return the bytes of one token's keys and values by the model's configuration; 0 when it does not give them."""
    config = model.config.get_text_config()
    count = getattr(config, "num_hidden_layers", 0)
    layers = [config] * count
    if getattr(config, "is_heterogeneous", False):  # such as Gemma 4, whose layers have heads of different sizes
        layers = [config.per_layer_config[i] for i in range(count)]
    return int(sum(_numbers(layer) for layer in layers) * model.dtype.itemsize)


def _numbers(config: Any) -> int:
    """Return the count of numbers in the keys and values of one token in one layer."""
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", 0)
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        heads = 1  # Falcon 7B; its newer architecture caches the keys of all heads
    if not heads:
        return 0
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * heads * size)


def fitting_tokens(
    bytes_per_token: int, device: str, context_length: int, processes: int = 1, shared: int = 0
) -> int | None:
    """Return the number of tokens that fit SHARE of the device's free memory, at least one context.

    Returns None if a token's size is not known. Replicas on the same device each take SHARE of their own part of the
    memory. `processes`: see `left_bytes`. `shared`: bytes of weights in pages of a file, which count as free memory.
    """
    if not bytes_per_token:
        return None
    left = left_bytes(device, processes) - shared
    if left <= 0:
        _log.warning(
            "the model leaves no memory of %s for the cache, which holds one context, %d tokens: use a smaller "
            "--precision, or fewer --replicas",
            device,
            context_length,
        )
    return max(context_length, int(SHARE * left / bytes_per_token))
