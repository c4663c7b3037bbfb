"""Sampling defaults of a model: those of its files, else those of the catalogue."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from run_gpt.errors import ModelLoadError
from run_gpt.models.catalogue import CatalogueEntry
from run_gpt.models.convert import converted_record, is_converted
from run_gpt.models.gguf.parts import read_parts
from run_gpt.models.gguf.values import sampling_of
from run_gpt.models.paths import is_gguf

FILE = "generation_config.json"
Defaults = Mapping[str, Any]
"""Values by the name of a request's field."""


@dataclass(frozen=True)
class _Range:
    """Values that a request may have, and the one that has no effect."""

    kind: type[int] | type[float]
    least: float
    most: float
    neutral: float | None = None
    above: bool = False
    """True when `least` itself is not possible."""

    def checked(self, value: Any) -> int | float | None:
        """Return a value in the range, None for any other."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        fits = self.least <= value <= self.most and not (self.above and value == self.least)
        return self.kind(value) if fits and self.kind(value) == value else None


RANGES: Mapping[str, _Range] = {
    "temperature": _Range(float, 0, 2),
    "top_k": _Range(int, 0, 2**31 - 1, neutral=0),
    "top_p": _Range(float, 0, 1, neutral=1, above=True),
    "min_p": _Range(float, 0, 1, neutral=0),
    "repetition_penalty": _Range(float, 0, 10, neutral=1, above=True),
    "presence_penalty": _Range(float, -2, 2, neutral=0),
    "frequency_penalty": _Range(float, -2, 2, neutral=0),
    "no_repeat_ngram_size": _Range(int, 0, 1024, neutral=0),
    "min_new_tokens": _Range(int, 0, 2**31 - 1, neutral=0),
}
"""Settings that requests have under the same names, with the same bounds."""
_NEUTRAL = {
    **{"top_k": -1, "max_length": 20, "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "typical_p": 1},
    **{"guidance_scale": 1, "encoder_repetition_penalty": 1, "penalty_last_n": -1},
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "min_length", "diversity_penalty", "penalty_alpha"), 0),
    **dict.fromkeys(("encoder_no_repeat_ngram_size", "xtc_probability", "mirostat"), 0),
}
"""Values at which a setting has no effect, beside null, false and empty ones."""
_NO_EFFECT = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version", "use_cache"),
    *("cache_implementation", "cache_config", "return_dict_in_generate", "output_attentions", "output_hidden_states"),
    *("output_scores", "output_logits", "low_memory", "compile_config", "disable_compile", "prefill_chunk_size"),
    *("remove_invalid_values", "length_penalty", "early_stopping", "is_assistant", "assistant_early_exit"),
    *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
    *("assistant_lookbehind", "target_lookbehind", "prompt_lookup_num_tokens", "max_matching_ngram_size"),
    *("xtc_threshold", "mirostat_tau", "mirostat_eta"),
)
"""Settings without an effect on answers here: tokens that are read elsewhere, speed, forms of transformers' results,
details of settings that are named if they are on."""
MOST_STOPS, MOST_OF_STOP = 16, 1024
"""Most stop texts, and most characters of one."""


def read_defaults(folder: Path) -> tuple[Defaults, Defaults]:
    """Return the sampling defaults in a model's folder or GGUF file, and the settings in it that are not applied.

    `stop` are texts that end an answer. A file that cannot be read has none: the load reports it.
    """
    applied, left = dict[str, Any](), dict[str, Any]()
    for name, value in _settings(folder).items():
        if name == "do_sample" and isinstance(value, bool):
            applied[name] = value
        elif name in _NO_EFFECT or name.startswith("_") or _is_neutral(name, value):
            continue
        elif name in RANGES and (number := RANGES[name].checked(value)) is not None:
            applied[name] = number
        elif name == "stop_strings" and (stops := _stops(value)):
            applied["stop"] = stops
        else:
            left[name] = value
    return applied, left


def sampling_defaults(folder: Path | None, entry: CatalogueEntry | None) -> tuple[Defaults, list[str]]:
    """Return the sampling defaults of a model, and a note for the user if a setting of its files is not applied.

    `entry`: its entry in the catalogue, whose defaults hold for a model without its own.
    """
    applied, left = ({}, {}) if folder is None else read_defaults(folder)
    notes = [f"the model has {defaults_text(left)}, which RunGPT does not apply"] if left else []
    greedy = {"do_sample": False} if entry is not None and entry.greedy else {}
    return applied or greedy, notes


def defaults_text(defaults: Defaults) -> str:
    """Return sampling defaults as one short line."""
    return ", ".join(f"{name} = {_short(value)}" for name, value in defaults.items())


def _settings(folder: Path) -> dict[str, Any]:
    """Return the generation settings of a folder; of a GGUF file those of its metadata."""
    try:
        if folder.is_file() and is_gguf(folder):
            return sampling_of(read_parts(folder).metadata)
        found = json.loads((folder / FILE).read_text(encoding="utf-8")) if (folder / FILE).is_file() else {}
        more = converted_record(folder).get("sampling", {}) if is_converted(folder) else {}
    except (OSError, ValueError, ModelLoadError):
        return {}
    return {**found, **more} if isinstance(found, dict) else {}


def _is_neutral(name: str, value: Any) -> bool:
    if value is None or value is False or value in ("", [], {}):
        return True
    known = {RANGES[name].neutral if name in RANGES else None, _NEUTRAL.get(name)} - {None}
    return not isinstance(value, bool | str | list | dict) and value in known


def _stops(value: Any) -> list[str]:
    """Return the stop texts of a setting, none if they are more or longer than requests may have."""
    texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    fit = len(texts) <= MOST_STOPS and all(isinstance(text, str) and 0 < len(text) <= MOST_OF_STOP for text in texts)
    return texts if fit else []


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
