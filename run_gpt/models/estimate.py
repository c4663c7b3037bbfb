"""Estimates of a model's memory: bytes of its weights in each precision and of its KV cache, computed without torch.

The headers of the files list their tensors, so the count is exact.
"""

import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from run_gpt.config import EngineConfig
from run_gpt.config.windows import ring_size
from run_gpt.errors import ModelLoadError
from run_gpt.models.context import context_length
from run_gpt.models.gguf_weights import gguf_shapes
from run_gpt.models.headers import stored_tensors
from run_gpt.models.quantised import quantisation_of
from run_gpt.models.sizes import size_text

BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "bit8": 1 + 2 / 32, "bit4": 0.5 + 4 / 32}
"""Bytes of one weight; 8 and 4 bits have scales for each group of 32. In bit4 embeddings and output layer are bit8."""
SHORT_CONTEXT = 512
"""Smallest useful size of the KV cache, in tokens: less than a whole context, since few requests fill one."""

_OUTER = ("embed", "lm_head", "wte", "wpe", "output")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_WHOLE = {"mistral": 0, "phi3": 0, "starcoder2": 0, "gemma2": 2, "gemma3_text": 6, "gpt_oss": 2, "olmo3": 4}
"""Families of the native runner with sliding windows: one layer in so many has none, the last of them, where the
configuration does not list the layers; 0: all have one."""
_OTHERS = ("encoder", "vis", "audio")
"""Parts of names of other stacks of layers than the text model's."""


@dataclass(frozen=True)
class Estimate:
    """Sizes of a model, from which its memory is computed."""

    inner: int
    """Number of weights in matrices, without those of the embeddings and the output layer."""
    outer: int
    """Number of weights in the embeddings and the output layer."""
    vectors: int
    """Number of other weights: norms and biases, which are never quantised."""
    cache_numbers: int = 0
    """Count of numbers in the keys and values of one token; 0: not known."""
    windowed: float = 0
    """Share of them in layers with a sliding window, in families of the native runner."""
    window: int = 0
    """Number of tokens in these windows."""
    context: int = 0
    """Context length: tokens of prompt and answer together; 0: not known."""

    @property
    def parameters(self) -> int:
        """Number of all weights."""
        return self.inner + self.outer + self.vectors

    def weights(self, precision: str) -> int:
        """Return the bytes of all weights: exact for fp32, fp16 and bf16."""
        plain = BYTES[precision] if BYTES[precision] >= 2 else 4.0
        outer = BYTES["bit8" if precision == "bit4" else precision]
        return int(self.inner * BYTES[precision] + self.outer * outer + self.vectors * plain)

    def cache(self, precision: str, tokens: int | None = None, *, native: bool = False) -> int:
        """Return the bytes of the keys and values of `tokens` tokens, by default of one context.

        `native`: with the native runner and its default steps, where a sliding window bounds the cache of its layers.
        """
        tokens = self.context if tokens is None else tokens
        ring = ring_size(self.window, EngineConfig().max_step_tokens) if native and self.window else tokens
        counted = tokens - self.windowed * max(0, tokens - ring)
        return round(self.cache_numbers * counted) * (4 if precision == "fp32" else 2)

    def least(self, precision: str) -> int:
        """Return the least bytes with which the model can serve: weights, and the cache of a short context."""
        return self.weights(precision) + self.cache(precision, min(self.context, SHORT_CONTEXT))


def estimate_folder(folder: Path) -> Estimate | None:
    """Return the estimate for a model's folder; None if it has no weights to count, or its files cannot be read.

    Only what is loaded counts: not a second copy in other files or of a tied weight, nor layers beyond the last one.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        numbers = _numbers(folder, config) or {name: (shape, 1.0) for name, shape in gguf_shapes(folder).items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error, ModelLoadError):
        return None  # the loader reports it
    if not numbers:
        return None
    text = config.get("text_config") or {}
    if (config.get("tie_word_embeddings") or text.get("tie_word_embeddings")) and len(numbers) > 1:
        numbers.pop("lm_head.weight", None)  # some files hold it twice
    layers = _first(config, *_LAYERS)
    counts = {"inner": 0, "outer": 0, "vectors": 0}
    for name, (shape, packed) in numbers.items():
        layer = _LAYER.search(name)
        if layer is not None and 0 < layers <= int(layer[1]) and not any(part in name for part in _OTHERS):
            continue  # such as those that predict more than one token
        if len(shape) > 3:  # attention masks in old checkpoints of GPT-2, GPT-J and Pythia, which are not loaded
            continue
        outer = any(part in name.lower() for part in _OUTER) and "layers." not in name and "h." not in name
        counts["vectors" if len(shape) < 2 else "outer" if outer else "inner"] += int(math.prod(shape) * packed)
    windowed, window = windows_of(config)
    numbers_of_token, context = _cache_numbers(config), context_length(config) or 0
    return Estimate(**counts, cache_numbers=numbers_of_token, windowed=windowed, window=window, context=context)


def _numbers(folder: Path, config: dict[str, Any]) -> dict[str, tuple[Sequence[int], float]]:
    """Return the shapes of the stored tensors by name, and the count of weights that each of their numbers holds."""
    kind = quantisation_of(folder, config)
    bits = None if kind is None else kind.bits
    packed = {} if not bits else {"U8": 8 / bits, "I32": 32 / bits, "U32": 32 / bits}
    return {name: (held.shape, packed.get(held.dtype, 1.0)) for name, held in stored_tensors(folder).items()}


def estimate_entry(parameters: int) -> Estimate:
    """Return the rough estimate for a model that is not on this disk, from the catalogue's number of parameters."""
    return Estimate(inner=parameters, outer=0, vectors=0)


def refusal(needed: int, free: int, where: str, ways: list[str]) -> str:
    """Return the line for a model that does not fit. `ways`: options with which it would fit."""
    out = f": use {' or '.join(ways)}" if ways else ": use a smaller model, or a machine with more memory"
    return f"it needs {size_text(needed)}, {size_text(free)} free on {where}{out}"


def _cache_numbers(config: dict[str, Any]) -> int:
    """Return the count of numbers in one token's keys and values; 0 if the configuration does not give it."""
    config = config.get("text_config") or config
    heads = _first(config, "num_attention_heads", "n_head", "n_heads")
    layers = _first(config, *_LAYERS)
    hidden = _first(config, "hidden_size", "n_embd", "d_model")
    if not heads:
        return 0
    size = _first(config, "head_dim") or hidden // heads
    kept = _first(config, "num_key_value_heads", "num_kv_heads") or heads
    if config.get("multi_query") and not config.get("new_decoder_architecture"):  # Falcon's first generation
        kept = 1
    return 2 * layers * kept * size


def windows_of(config: dict[str, Any]) -> tuple[float, int]:
    """Return the share of layers with a sliding window, and its tokens; (0, 0) if the native runner bounds none."""
    config = config.get("text_config") or config
    layers, window = _first(config, *_LAYERS), config.get("sliding_window")
    every = _WHOLE.get(config.get("model_type", ""))
    if every is None or not window or not layers:
        return 0, 0
    if kinds := config.get("layer_types"):
        return kinds.count("sliding_attention") / len(kinds), int(window)
    every = config.get("sliding_window_pattern") or every
    return 1 - (layers // every if every else 0) / layers, int(window)


def _first(config: dict[str, Any], *names: str) -> int:
    config = config.get("text_config") or config
    return next((value for name in names if isinstance(value := config.get(name), int) and value > 0), 0)
