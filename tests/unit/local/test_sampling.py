"""Without these tests a request's own sampling parameters could lose to the model's defaults."""

from typing import Any

import pytest

from run_gpt.api.schema import GenerateRequest
from run_gpt.engine.request import SamplingParams
from run_gpt.errors import InvalidRequest
from run_gpt.local.sampling import sampling_fields
from run_gpt.models.sampling import RANGES

GREEDY: dict[str, Any] = {"do_sample": False}
QWEN: dict[str, Any] = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
V1 = {"default_temperature": 1.0}
CATALOGUE = {"do_sample": False, "temperature": 0.3}


def params(defaults: dict[str, Any], **fields: Any) -> SamplingParams:
    return SamplingParams(**sampling_fields(GenerateRequest.parse({"prompt": "x", **fields}), defaults))


@pytest.mark.parametrize(
    ("defaults", "fields", "meant"),
    [
        ({}, {}, GREEDY),
        ({}, V1, {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}),
        ({}, {**V1, "temperature": 0}, GREEDY),
        ({}, {**V1, "top_p": 0.5}, {"do_sample": True, "temperature": 1.0, "top_p": 0.5}),
        ({}, {"do_sample": True}, {"do_sample": True, "temperature": 1.0}),
        (QWEN, {}, QWEN),
        (QWEN, V1, QWEN),
        (QWEN, {"temperature": 0.9}, {**QWEN, "temperature": 0.9}),
        (QWEN, {"top_p": 1.0, "top_k": 0}, {"do_sample": True, "temperature": 0.6, "top_p": 1.0, "top_k": 0}),
        (QWEN, {"temperature": 0}, GREEDY),
        (QWEN, {"do_sample": False}, GREEDY),
        (QWEN, {"do_sample": True}, QWEN),
        (QWEN, {"num_beams": 2}, GREEDY),
        (CATALOGUE, {}, GREEDY),
        (CATALOGUE, V1, GREEDY),
        (CATALOGUE, {**V1, "top_p": 1.0}, GREEDY),
        (CATALOGUE, {"top_p": 0.5}, {"do_sample": True, "temperature": 0.3}),
        (CATALOGUE, {"do_sample": True}, {"do_sample": True, "temperature": 0.3}),
        ({"do_sample": False}, {"top_k": 5}, {"do_sample": True, "temperature": 1.0, "top_k": 5}),
        ({"temperature": 0.0}, V1, GREEDY),
        ({"temperature": 0.0}, {"min_p": 0.1}, {"do_sample": True, "temperature": 1.0}),
        ({"temperature": 0.2}, V1, {"do_sample": True, "temperature": 0.2}),
        ({"top_k": 4}, {}, {"do_sample": True, "temperature": 1.0, "top_k": 4}),
        ({"do_sample": True}, {}, {"do_sample": True, "temperature": 1.0}),
        ({"repetition_penalty": 1.1}, {}, {"do_sample": False, "repetition_penalty": 1.1}),
        ({"repetition_penalty": 1.1}, V1, {"do_sample": True, "temperature": 1.0, "repetition_penalty": 1.1}),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.0}, {"repetition_penalty": 1.0}),
        ({"min_new_tokens": 3}, {}, {"min_new_tokens": 3}),
    ],
    ids=str,
)
def test_the_request_wins_then_the_model_then_the_route(
    defaults: dict[str, Any], fields: dict[str, Any], meant: dict[str, Any]
) -> None:
    chosen = params(defaults, **fields)
    assert {name: getattr(chosen, name) for name in meant} == meant


def test_defaults_that_could_leave_no_token_to_a_form_do_not_hold_there() -> None:
    chosen = params(
        {"min_new_tokens": 3, "no_repeat_ngram_size": 2, "top_k": 3}, response_format={"type": "json_object"}
    )
    assert (chosen.min_new_tokens, chosen.no_repeat_ngram_size, chosen.top_k) == (0, 0, 3)


@pytest.mark.parametrize("name", RANGES)
def test_a_models_setting_has_the_bounds_of_a_requests(name: str) -> None:
    """Compare the bounds: the schema may not be imported where models are loaded."""
    bounds = RANGES[name]
    kinds = str(GenerateRequest.model_fields[name].annotation)
    assert bounds.kind.__name__ in kinds
    below = bounds.least - (1.1 if name == "top_k" else 0.1)  # a request's top_k of -1 is off
    for value in (below, bounds.least, bounds.least + 1e-6, bounds.most, bounds.most + 0.5):
        value = int(value // 1) if bounds.kind is int else value
        try:
            GenerateRequest.parse({"prompt": "x", name: value})
        except InvalidRequest:
            assert bounds.checked(value) is None, value
        else:
            assert bounds.checked(value) == value
