"""The bytes of single tokens must join to the text; otherwise offsets in it and split characters would be wrong."""

from pathlib import Path
from typing import Any

import pytest
from families import copied_tokenizer, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from run_gpt.models.token_bytes import TokenBytes

TEXTS = [
    "In a village by the sea",
    " two  spaces\n\ttab",
    "naïve 日本語 😀👩‍👩‍👧 café",
    "\x00\x7f\u00a0\u3000▁Ġ",
    "<0x41> «x»",
]


def joined(tokenizer: Any, text: str) -> str:
    token_bytes = TokenBytes(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return b"".join(token_bytes(i) for i in ids).decode()


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40) | st.sampled_from(TEXTS))
def test_byte_level_tokens_join_to_the_text(text: str) -> None:
    assert joined(BYTE_LEVEL, text) == text


BYTE_LEVEL = copied_tokenizer()


@pytest.fixture(scope="module")
def sentencepiece_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from families import as_sentencepiece_files

    folder = write_checkpoint("vicuna", tmp_path_factory.mktemp("vicuna"))
    as_sentencepiece_files(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", TEXTS[:3])
def test_sentencepieces_tokens_join_to_the_text_after_its_space(sentencepiece_tokenizer: Any, text: str) -> None:
    assert joined(sentencepiece_tokenizer, text) in (text, f" {text}")


def test_a_byte_token_is_its_byte(sentencepiece_tokenizer: Any) -> None:
    token_bytes = TokenBytes(sentencepiece_tokenizer)
    assert token_bytes(sentencepiece_tokenizer.convert_tokens_to_ids("<0xF0>")) == b"\xf0"


@pytest.mark.parametrize("name", ["gpt2", "moss"])
def test_tokenizers_from_files_of_their_own(name: str, tmp_path: Path) -> None:
    from run_gpt.config import ModelConfig
    from run_gpt.models import load

    loaded = load(ModelConfig(model_path=str(write_checkpoint(name, tmp_path / name)), device="cpu"))
    for text in TEXTS:
        assert joined(loaded.tokenizer, text) == text


def test_special_tokens_are_their_names_and_rows_without_a_token_are_nothing() -> None:
    token_bytes = TokenBytes(BYTE_LEVEL)
    assert token_bytes(BYTE_LEVEL.eos_token_id) == b"</s>"
    assert token_bytes(BYTE_LEVEL.convert_tokens_to_ids("<|im_start|>")) == b"<|im_start|>"
    assert token_bytes(len(BYTE_LEVEL) + 7) == b""
