"""Rotary positions of a GGUF file, as transformers' `rope_parameters`."""

import math
from typing import Any

from run_gpt.errors import ModelLoadError
from run_gpt.models.gguf.parts import GgufModel
from run_gpt.models.gguf.tokenizer import ORIGINAL
from run_gpt.models.gguf.values import read_vector, shortest

ROTARY_KEYS = (
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
)
"""Keys, after the architecture's name, that are read here."""
FACTORS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
"""Tensors that are read here: a factor for each frequency, or two, for long and for short texts."""

_BASE = 10000.0
_LOW, _HIGH = 1.0, 4.0
# The file's factors and ours are both rounded to 32 bits.
_TOLERANCE = 1e-5


def rotary(model: GgufModel, size: int) -> dict[str, Any]:
    """Return `rope_parameters` for heads that have `size` numbers rotated.

    Raises ModelLoadError for a scaling that transformers does not have.
    """
    base = float(_value(model, "rope.freq_base", _BASE))
    scaled = _scaled(model)
    if FACTORS in model.tensors:
        if scaled:
            raise _refused(model, f"{FACTORS} beside the scaling {scaled['rope_type']!r}")
        scaled = _by_factors(model, base, size)
    if scaled.get("rope_type") == "longrope":
        for name in ("long_factor", "short_factor"):
            if len(scaled[name]) != size // 2:
                raise _refused(model, f"{len(scaled[name])} factors for {size // 2} frequencies")
    return {"rope_type": "default", "rope_theta": base, **scaled}


def _value(model: GgufModel, key: str, default: Any = None) -> Any:
    return shortest(model.metadata.get(f"{model.architecture}.{key}", default))


def _refused(model: GgufModel, what: str) -> ModelLoadError:
    return ModelLoadError(f"{model.path} has rotary positions that RunGPT does not know ({what}): {ORIGINAL}")


def _scaled(model: GgufModel) -> dict[str, Any]:
    """Return the scaling that the metadata name; empty if there is none."""
    factor = _value(model, "rope.scaling.factor") or _value(model, "rope.scale_linear") or 1.0
    kind = _value(model, "rope.scaling.type", "linear")
    if LONG in model.tensors or SHORT in model.tensors or kind == "longrope":
        if factor != 1.0:
            raise _refused(model, f"LongRoPE with rope.scaling.factor {factor}")
        return _long(model)
    if kind == "yarn":
        return _yarn(model, factor)
    if kind not in ("none", "linear"):
        raise _refused(model, f"rope.scaling.type {kind!r}")
    for key in ("attn_factor", "yarn_attn_factor"):
        if (attention := _value(model, f"rope.scaling.{key}", 1.0)) != 1.0:
            raise _refused(model, f"rope.scaling.{key} {attention} without YaRN")
    return {} if kind == "none" or factor == 1.0 else {"rope_type": "linear", "factor": factor}


def _yarn(model: GgufModel, factor: float) -> dict[str, Any]:
    context = _value(model, "rope.scaling.original_context_length") or _value(model, "context_length")
    found = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": context}
    for ours, key in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if (value := _value(model, f"rope.scaling.{key}")) is not None:
            found[ours] = value
    if (attention := _value(model, "rope.scaling.yarn_attn_factor")) is not None:
        found["attention_factor"] = attention
    elif (further := _value(model, "rope.scaling.attn_factor", 1.0)) != 1.0:
        found["attention_factor"] = further * (0.1 * math.log(factor) + 1)
    return found


def _long(model: GgufModel) -> dict[str, Any]:
    """Return LongRoPE, with its two sets of factors."""
    context = _value(model, "rope.scaling.original_context_length")
    if LONG not in model.tensors or SHORT not in model.tensors or context is None:
        raise _refused(model, f"LongRoPE needs {LONG}, {SHORT} and rope.scaling.original_context_length")
    return {
        "rope_type": "longrope",
        "long_factor": [shortest(factor) for factor in read_vector(model.tensors[LONG])],
        "short_factor": [shortest(factor) for factor in read_vector(model.tensors[SHORT])],
        "original_max_position_embeddings": context,
        "attention_factor": _value(model, "rope.scaling.attn_factor", 1.0),
    }


def _by_factors(model: GgufModel, base: float, size: int) -> dict[str, Any]:
    """Return the scaling that a factor for each frequency means: Llama 3's where it is one, else these very factors."""
    factors = read_vector(model.tensors[FACTORS])
    if len(factors) != size // 2:
        raise _refused(model, f"{FACTORS} has {len(factors)} factors for {size // 2} frequencies")
    if all(factor == 1.0 for factor in factors):
        return {}
    waves = [2 * math.pi * base ** (2 * i / size) for i in range(size // 2)]
    found = _llama3(waves, factors)
    if found is not None:
        return found
    return {  # the same factors for short and long texts: the length plays no part
        "rope_type": "longrope",
        "long_factor": factors,
        "short_factor": factors,
        "original_max_position_embeddings": _value(model, "context_length"),
        "attention_factor": 1.0,
        "factor": 1.0,
    }


def _llama3(waves: list[float], factors: list[float]) -> dict[str, Any] | None:
    """Return the parameters of Llama 3's scaling that give these factors, or None. `waves`: lengths, in tokens."""
    factor = max(factors)
    between = [
        (w, (1 / f - 1 / factor) / (1 - 1 / factor)) for w, f in zip(waves, factors, strict=True) if 1 < f < factor
    ]
    for low, high, context in _guesses(waves, factors, between):
        ours = [_llama3_factor(wave, factor, low, high, context) for wave in waves]
        if all(math.isclose(a, b, rel_tol=_TOLERANCE) for a, b in zip(ours, factors, strict=True)):
            return {
                "rope_type": "llama3",
                "factor": shortest(factor),
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
    return None


def _guesses(
    waves: list[float], factors: list[float], between: list[tuple[float, float]]
) -> list[tuple[float, float, int]]:
    """Return values of low and high factor and context that may be meant. `between`: lengths and their share."""
    guesses = [(_LOW, _HIGH, round(wave * (share * (_HIGH - _LOW) + _LOW))) for wave, share in between]
    if len(between) > 1:  # the share is a line over 1 / length
        (wave, share), (other, last) = between[0], between[-1]
        slope = (share - last) / (1 / wave - 1 / other)
        start = slope / wave - share
        if start > 0:
            guesses.append((_LOW, round(_LOW + 1 / start, 3), round(slope / start)))
    if not between:  # any context between the last length that is kept and the first that is scaled
        kept = max((wave for wave, factor in zip(waves, factors, strict=True) if factor == 1.0), default=1.0)
        guesses += [(_LOW, _HIGH, 2**power) for power in range(4, 21) if 2**power > kept * _HIGH]
    return guesses


def _llama3_factor(wave: float, factor: float, low: float, high: float, context: int) -> float:
    if wave < context / high:
        return 1.0
    if wave > context / low:
        return factor
    share = (context / wave - low) / (high - low)
    return 1 / ((1 - share) / factor + share)
