"""Without these tests a model could be sampled with other settings than its files name, or refuse them in silence."""

import json
from pathlib import Path
from typing import Any

import pytest

from run_gpt.models.catalogue import CATALOGUE, find
from run_gpt.models.sampling import defaults_text, read_defaults, sampling_defaults

OF_QWEN = {
    **{
        "bos_token_id": 151643,
        "eos_token_id": [151645, 151643],
        "pad_token_id": 151643,
        "transformers_version": "4.51",
    },
    **{"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
}
OF_LLAMA_2 = {"do_sample": True, "max_length": 4096, "temperature": 0.6, "top_p": 0.9, "_from_model_config": False}


def write(folder: Path, settings: Any) -> Path:
    (folder / "generation_config.json").write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("settings", "applied", "left"),
    [
        (OF_QWEN, {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}, {}),
        (OF_LLAMA_2, {"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {"max_length": 4096}),
        ({"_from_model_config": True, "eos_token_id": 2, "use_cache": True, "max_length": 20}, {}, {}),
        ({"do_sample": False}, {"do_sample": False}, {}),
        (
            {"repetition_penalty": 1.05, "no_repeat_ngram_size": 3},
            {"repetition_penalty": 1.05, "no_repeat_ngram_size": 3},
            {},
        ),
        ({"top_k": 0, "top_p": 1, "min_p": 0.0, "repetition_penalty": 1.0, "typical_p": 1.0, "num_beams": 1}, {}, {}),
        ({"top_k": -1, "temperature": None, "bad_words_ids": None, "stop_strings": [], "token_healing": False}, {}, {}),
        ({"top_k": 50.0, "temperature": 1}, {"top_k": 50, "temperature": 1.0}, {}),
        ({"stop_strings": "###", "min_new_tokens": 2}, {"stop": ["###"], "min_new_tokens": 2}, {}),
        ({"stop_strings": ["a"] * 17}, {}, {"stop_strings": ["a"] * 17}),
        ({"stop_strings": [1]}, {}, {"stop_strings": [1]}),
        ({"num_beams": 4, "length_penalty": 2.0, "early_stopping": True}, {}, {"num_beams": 4}),
        ({"suppress_tokens": [1], "forced_bos_token_id": 0}, {}, {"suppress_tokens": [1], "forced_bos_token_id": 0}),
        ({"a_new_way_to_sample": 0.5}, {}, {"a_new_way_to_sample": 0.5}),
        *(
            ({name: value}, {}, {name: value})
            for name, values in {
                "temperature": (-1, 2.5, "0.6", True, [0.6]),
                "top_p": (0, -0.1, 1.5, "x"),
                "top_k": (2.5, -2, 2**31),
                "min_p": (-0.1, 1.1),
                "repetition_penalty": (0, 11, {}.fromkeys("a")),
                "do_sample": ("yes", 1),
            }.items()
            for value in values
        ),
        ({"temperature": float("nan")}, {}, {"temperature": pytest.approx(float("nan"), nan_ok=True)}),
        ({"temperature": float("inf")}, {}, {"temperature": float("inf")}),
        ("[]", {}, {}),
        ("{", {}, {}),
    ],
)
def test_each_setting_is_applied_or_named_or_has_no_effect(
    tmp_path: Path, settings: Any, applied: Any, left: Any
) -> None:
    assert read_defaults(write(tmp_path, settings)) == (applied, left)


def test_settings_that_are_not_applied_are_one_note(tmp_path: Path) -> None:
    defaults, notes = sampling_defaults(write(tmp_path, {**OF_LLAMA_2, "typical_p": 0.9}), None)
    assert defaults_text(defaults) == "do_sample = true, temperature = 0.6, top_p = 0.9"
    assert notes == ["the model has max_length = 4096, typical_p = 0.9, which RunGPT does not apply"]


def test_the_catalogue_has_defaults_for_a_model_without_its_own(tmp_path: Path) -> None:
    entry = find("smollm2")
    assert sampling_defaults(None, entry) == sampling_defaults(tmp_path, entry) == ({"do_sample": False}, [])
    assert sampling_defaults(write(tmp_path, {"temperature": 0.2}), entry) == ({"temperature": 0.2}, [])
    assert sampling_defaults(None, None) == ({}, [])
    assert [entry.name for entry in CATALOGUE if entry.greedy] == ["smollm2"]
