"""Without these tests a model would get its parts in another order than in its training, or run on after the gap."""

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from run_gpt.models.fill_in import FORMATS, FillInFormat, find_fill_in

BAR, LOW = "\uff5c", "\u2581"


def tokenizer_of(*tokens: str, begins: str | None = None, spaces: bool = False) -> Any:
    """Return a tokenizer of single characters with these tokens. `spaces`: a text begins with a space."""
    letters = [*"abcdefxyz\n", "\N{WHITE SMILING FACE}", LOW if spaces else " ", "?"]
    plain = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, [], unk_token="?"))
    if spaces:
        plain.normalizer = normalizers.Sequence([normalizers.Prepend(LOW), normalizers.Replace(" ", LOW)])
        plain.decoder = decoders.Replace(LOW, " ")
    else:
        plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = list(dict.fromkeys([*tokens, *([begins] if begins else [])]))
    plain.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if begins:
        pair = (begins, plain.token_to_id(begins))
        plain.post_processor = processors.TemplateProcessing(f"{begins} $A", special_tokens=[pair])
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="?")


def prompt(tokenizer: Any, prefix: Any = "ab", suffix: str = "yz") -> str:
    fill_in = find_fill_in(tokenizer)
    assert fill_in is not None
    return "".join(tokenizer.convert_ids_to_tokens(fill_in.prompt(prefix, suffix)))


CASES = {
    "Mellum": (
        ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<|im_start|>"),
        "<fim_suffix>yz<fim_prefix>ab<fim_middle>",
    ),
    "StarCoder": (("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), "<fim_prefix>ab<fim_suffix>yz<fim_middle>"),
    "SantaCoder": (("<fim-prefix>", "<fim-suffix>", "<fim-middle>"), "<fim-prefix>ab<fim-suffix>yz<fim-middle>"),
    "Qwen Coder": (
        ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|im_start|>"),
        "<|fim_prefix|>ab<|fim_suffix|>yz<|fim_middle|>",
    ),
    "DeepSeek Coder": (
        tuple(f"<{BAR}fim{LOW}{part}{BAR}>" for part in ("begin", "hole", "end")),
        f"<{BAR}fim{LOW}begin{BAR}>ab<{BAR}fim{LOW}hole{BAR}>yz<{BAR}fim{LOW}end{BAR}>",
    ),
    "Code Llama": ((f"{LOW}<PRE>", f"{LOW}<SUF>", f"{LOW}<MID>"), f"{LOW}<PRE>ab{LOW}<SUF>yz{LOW}<MID>"),
    "Seed Coder": (
        ("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>"),
        "<[fim-suffix]>yz<[fim-prefix]>ab<[fim-middle]>",
    ),
    "GLM": (
        ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
        "<|code_prefix|>ab<|code_suffix|>yz<|code_middle|>",
    ),
    "Codestral": (("[PREFIX]", "[SUFFIX]", "[MIDDLE]"), "[SUFFIX]yz[PREFIX]ab"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_family_has_its_order(name: str) -> None:
    tokens, expected = CASES[name]
    tokenizer = tokenizer_of(*tokens)
    fill_in = find_fill_in(tokenizer)
    assert fill_in is not None
    assert fill_in.form.name == name
    assert prompt(tokenizer) == expected
    assert set(tokenizer.convert_tokens_to_ids(list(tokens))) <= fill_in.ends
    assert prompt(tokenizer_of(*tokens, begins="<s>")) == "<s>" + expected


def test_all_families_are_tried() -> None:
    assert {form.name for form in FORMATS} == CASES.keys()


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_a_tokenizer_that_lacks_a_mark_fills_in_nothing(form: FillInFormat) -> None:
    assert find_fill_in(tokenizer_of(*form.marks[1:])) is None


def test_a_tokenizer_that_begins_texts_with_a_space_adds_none_to_the_suffix() -> None:
    """Code Llama and Codestral were trained so: the suffix has no space, the prefix has its usual one."""
    code_llama = tokenizer_of(f"{LOW}<PRE>", f"{LOW}<SUF>", f"{LOW}<MID>", f"{LOW}<EOT>", begins="<s>", spaces=True)
    assert prompt(code_llama) == f"<s>{LOW}<PRE>{LOW}ab{LOW}<SUF>yz{LOW}<MID>"
    assert prompt(code_llama, suffix=" y") == f"<s>{LOW}<PRE>{LOW}ab{LOW}<SUF>{LOW}y{LOW}<MID>"
    assert prompt(code_llama, suffix="\ny") == f"<s>{LOW}<PRE>{LOW}ab{LOW}<SUF>\ny{LOW}<MID>"


def test_the_gap_may_be_at_the_beginning() -> None:
    assert prompt(tokenizer_of(*CASES["StarCoder"][0]), prefix="") == "<fim_prefix><fim_suffix>yz<fim_middle>"


@pytest.mark.parametrize("begins", [None, "<s>"])
def test_a_prefix_of_token_ids_is_taken_as_it_is(begins: str | None) -> None:
    tokenizer = tokenizer_of(*CASES["StarCoder"][0], begins=begins)
    for special in (True, False):
        ids = tokenizer("ab", add_special_tokens=special)["input_ids"]
        assert prompt(tokenizer, ids) == prompt(tokenizer, "ab")
