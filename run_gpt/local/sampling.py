"""Sampling parameters of a request: its own, and the model's defaults for those that it leaves unset."""

from typing import Any

from run_gpt.api.schema import Parameters
from run_gpt.models.sampling import Defaults

_NAMES = (
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
    "min_new_tokens",
    "seed",
    "logprobs",
)
_NOT_WITH_A_FORM = ("no_repeat_ngram_size", "min_new_tokens")
"""Defaults that could leave no token to an answer whose form is enforced."""


def sampling_fields(request: Parameters, defaults: Defaults) -> dict[str, Any]:
    """Return the fields of SamplingParams that a request and the model's defaults set. The request's own come first."""
    given = {name: value for name in _NAMES if (value := getattr(request, name)) is not None}
    skipped = _NOT_WITH_A_FORM if request.form is not None else ()
    usual = {name: defaults[name] for name in _NAMES if name in defaults and name not in skipped}
    if request.best_of is not None:  # the log-probabilities decide which answer is best
        given.setdefault("logprobs", 0)
    temperature = _temperature(request, defaults)
    return {**usual, **given, "do_sample": temperature > 0, "temperature": temperature or 1.0}


def _temperature(request: Parameters, defaults: Defaults) -> float:
    """Return the temperature; 0 is greedy."""
    own: float | None = defaults.get("temperature")
    if request.do_sample is False or request.beam_search:
        return 0.0
    if request.temperature is not None:
        return request.temperature
    if request.samples:  # a default of 0 would make what it asks for senseless
        return own or 1.0
    if defaults.get("do_sample") is False:
        return 0.0
    if own is not None:
        return own
    if any(name in defaults for name in ("do_sample", "top_k", "top_p", "min_p")):
        return 1.0
    return request.default_temperature or 0.0
