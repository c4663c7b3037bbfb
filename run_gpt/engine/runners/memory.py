"""How large a token of cache is, and how many the free memory holds."""

import logging
from typing import Any

from run_gpt.process.devices import left_bytes

_log = logging.getLogger("run_gpt")

SHARE = 0.5
"""Of the free memory; the rest is for a step's own tensors, and for what else runs."""


def cache_bytes_per_token(model: Any) -> int:
    """Bytes of the keys and values of one token, as the model's configuration tells; 0 when it does not."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", 0)
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        heads = 1  # Falcon 7B; its newer architecture caches the keys of all heads
    if not heads:
        return 0
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)


def fitting_tokens(bytes_per_token: int, device: str, context_length: int, processes: int = 1) -> int | None:
    """Tokens that fit the share of the device's free memory, at least one context; None when a token's size is not
    known.

    Of replicas that share the device, each takes its share of what is its own. `processes`: see `left_bytes`.
    """
    if not bytes_per_token:
        return None
    left = left_bytes(device, processes)
    if left <= 0:
        _log.warning(
            "the model leaves no memory of %s for the cache, which holds one context, %d tokens: use a smaller "
            "--precision, or fewer --replicas",
            device,
            context_length,
        )
    return max(context_length, int(SHARE * left / bytes_per_token))
