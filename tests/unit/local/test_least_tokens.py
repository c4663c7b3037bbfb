"""Without these tests a text that fits could be refused as too long, or one that cannot fit be tokenised first."""

import pytest
from families import as_sentencepiece_files, copied_tokenizer, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from run_gpt.local.least_tokens import AT_ONCE, LeastTokens

words = st.text("ab 019é日😀\n\t e\u0301\u212b\ufb01\u1e9b\u0323Ġ▁<>|_im_start|s", max_size=60)
parts = st.sampled_from(["miller ", "In a village", "<|im_start|>", "   ", "</s>", "e\u0301", "▁▁", "<0x41>", "\u3000"])
texts = st.lists(words | parts | st.text(max_size=20), max_size=12).map("".join)


def byte_level(*steps, added=()):
    """Return the byte-level tokenizer of the tests with these normalisers and added tokens."""
    tokenizer = copied_tokenizer()
    if steps:
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(list(steps))
    tokenizer.add_tokens(list(added))
    return tokenizer


def few_letters(**options):
    """Return a BPE tokenizer that knows only a, b and the space."""
    vocabulary = {"<unk>": 0, "a": 1, "b": 2, "▁": 3, "ab": 4}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b")], unk_token="<unk>", **options))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory):
    folder = write_checkpoint("vicuna", tmp_path_factory.mktemp("vicuna"))
    as_sentencepiece_files(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer, LeastTokens(tokenizer)


TOKENIZERS = {
    "plain": byte_level(),
    "nfc": byte_level(normalizers.NFC()),
    "nfkc": byte_level(normalizers.NFKC()),
    "strips": byte_level(added=[AddedToken("<mask>", lstrip=True), AddedToken("miller", rstrip=True)]),
    "long": byte_level(added=[AddedToken("a" * 30), AddedToken("0 1 2")]),
    "lower": byte_level(normalizers.Lowercase()),
    "squeezes": byte_level(normalizers.Replace(Regex(" +"), " ")),
    "unknown": few_letters(fuse_unk=False),
    "fused": few_letters(fuse_unk=True),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None, database=None)
@given(text=texts)
def test_no_text_has_fewer_tokens(name, text):
    tokenizer = TOKENIZERS[name]
    least = LEAST[name](text, 0)
    assert least <= len(tokenizer(text, add_special_tokens=False)["input_ids"])


LEAST = {name: LeastTokens(tokenizer) for name, tokenizer in TOKENIZERS.items()}


@settings(max_examples=60, deadline=None, database=None)
@given(text=texts)
def test_no_text_has_fewer_sentencepieces(sentencepiece, text):
    tokenizer, least = sentencepiece
    assert least(text, 0) <= len(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", ["plain", "nfc", "nfkc", "strips", "long"])
def test_a_long_text_of_digits_is_known_to_be_long(name):
    """Check that the bound is of use: each digit is nearly a token."""
    assert LEAST[name]("1234567890" * (AT_ONCE // 5), AT_ONCE // 4) > AT_ONCE // 4


@pytest.mark.parametrize("name", ["lower", "squeezes"])
def test_a_tokenizer_that_changes_text_in_other_ways_has_no_bound(name):
    assert LEAST[name]("1" * 100_000, 10) == 0


def test_counting_ends_when_it_is_enough():
    assert 10 < LEAST["plain"]("1" * (8 * AT_ONCE), 10) <= AT_ONCE


def test_a_splitter_that_drops_text_has_no_bound():
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    assert LeastTokens(PreTrainedTokenizerFast(tokenizer_object=tokenizer))("a" * 1000, 1) == 0
