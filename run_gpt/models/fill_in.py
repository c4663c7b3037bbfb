"""Prompts that fill in a middle (FIM): marks of each family, order of its parts, and tokens that end an answer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from run_gpt.models.tokenizer import encode

_INSIDE = "\N{WHITE SMILING FACE}"
"""Character before a text whose tokens are those inside a text: some tokenizers begin a text with a space."""


@dataclass(frozen=True, kw_only=True)
class FillInFormat:
    """One family's form. Its marks are tokens of the vocabulary."""

    name: str
    prefix: str
    suffix: str
    middle: str | None
    """Mark after both parts; None: there is none."""
    suffix_first: bool = False
    also: tuple[str, ...] = ()
    """Further tokens that the vocabulary has, unlike that of another family with the same marks."""
    ends: tuple[str, ...] = ()
    """Tokens beside the marks that end an answer, as far as the vocabulary has them."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Marks of the parts."""
        return (self.prefix, self.suffix, *(() if self.middle is None else (self.middle,)))


FORMATS = (
    FillInFormat(
        name="Mellum",
        prefix="<fim_prefix>",
        suffix="<fim_suffix>",
        middle="<fim_middle>",
        suffix_first=True,
        also=("<|im_start|>",),
        ends=("<fim_pad>", "<filename>", "<reponame>", "<|endoftext|>", "<|im_start|>"),
    ),
    FillInFormat(  # Granite Code, Stable Code and Refact, too
        name="StarCoder",
        prefix="<fim_prefix>",
        suffix="<fim_suffix>",
        middle="<fim_middle>",
        ends=("<fim_pad>", "<file_sep>", "<filename>", "<repo_name>", "<reponame>", "<|endoftext|>"),
    ),
    FillInFormat(
        name="SantaCoder",
        prefix="<fim-prefix>",
        suffix="<fim-suffix>",
        middle="<fim-middle>",
        ends=("<fim-pad>", "<|endoftext|>"),
    ),
    FillInFormat(  # CodeGemma and Granite 3 and 4, too
        name="Qwen Coder",
        prefix="<|fim_prefix|>",
        suffix="<|fim_suffix|>",
        middle="<|fim_middle|>",
        ends=(
            *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"),
            *("<|file_separator|>", "<|filename|>", "<|reponame|>", "<|end_of_text|>"),
        ),
    ),
    FillInFormat(
        name="DeepSeek Coder",
        prefix="<\N{FULLWIDTH VERTICAL LINE}fim\N{LOWER ONE EIGHTH BLOCK}begin\N{FULLWIDTH VERTICAL LINE}>",
        suffix="<\N{FULLWIDTH VERTICAL LINE}fim\N{LOWER ONE EIGHTH BLOCK}hole\N{FULLWIDTH VERTICAL LINE}>",
        middle="<\N{FULLWIDTH VERTICAL LINE}fim\N{LOWER ONE EIGHTH BLOCK}end\N{FULLWIDTH VERTICAL LINE}>",
        ends=("<|EOT|>",),
    ),
    *(
        FillInFormat(
            name="Code Llama",
            prefix=f"{space}<PRE>",
            suffix=f"{space}<SUF>",
            middle=f"{space}<MID>",
            ends=(f"{space}<EOT>",),
        )
        for space in ("\N{LOWER ONE EIGHTH BLOCK}", "")
    ),
    FillInFormat(
        name="Seed Coder",
        prefix="<[fim-prefix]>",
        suffix="<[fim-suffix]>",
        middle="<[fim-middle]>",
        suffix_first=True,
        ends=("<[end of sentence]>",),
    ),
    FillInFormat(
        name="GLM",
        prefix="<|code_prefix|>",
        suffix="<|code_suffix|>",
        middle="<|code_middle|>",
        ends=("<|endoftext|>",),
    ),
    FillInFormat(
        name="Codestral", prefix="[PREFIX]", suffix="[SUFFIX]", middle=None, suffix_first=True, ends=("[MIDDLE]",)
    ),
)
"""Forms, a special one before the general one with the same marks."""


def find_fill_in(tokenizer: Any) -> "FillIn | None":
    """Return the form of a tokenizer's model; None if it has no marks for it."""
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    for form in FORMATS:
        if all(token in vocabulary for token in (*form.marks, *form.also)):
            return FillIn(tokenizer, form, vocabulary)
    return None


class FillIn:
    """Writer of the prompts of one model that fill in a middle."""

    def __init__(self, tokenizer: Any, form: FillInFormat, vocabulary: Mapping[str, int]):
        self.form = form
        self.ends = frozenset(vocabulary[token] for token in (*form.marks, *form.ends) if token in vocabulary)
        """Ids that end an answer, beside those that end any."""
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        plain, whole = (encode(tokenizer, "a", "suffix", special=special) for special in (False, True))
        self._begin = whole[: whole.index(plain[0])] if plain[0] in whole else []
        """Special tokens that begin a text."""
        first = str(tokenizer.convert_ids_to_tokens(plain[0]))
        self._adds_space = first.startswith("\N{LOWER ONE EIGHTH BLOCK}")

    def prompt(self, prefix: str | Sequence[int], suffix: str) -> list[int]:
        """Return the token ids of the prompt for the text, or ids, before the answer and the text after it.

        Raises InvalidRequest for a text that the tokenizer refuses.
        """
        if isinstance(prefix, str):
            before = encode(self._tokenizer, prefix, "prompt", special=False)
        else:
            count = len(self._begin)
            before = list(prefix[count:] if list(prefix[:count]) == self._begin else prefix)
        parts = [self._marked(self.form.prefix, before), self._marked(self.form.suffix, self._inside(suffix))]
        last = [] if self.form.middle is None else [self._vocabulary[self.form.middle]]
        return [*self._begin, *(one for part in self._ordered(parts) for one in part), *last]

    def _ordered(self, parts: list[list[int]]) -> Iterator[list[int]]:
        return reversed(parts) if self.form.suffix_first else iter(parts)

    def _marked(self, mark: str, ids: list[int]) -> list[int]:
        return [self._vocabulary[mark], *ids]

    def _inside(self, text: str) -> list[int]:
        """Return the ids of a text that does not begin one: no space is added before it."""
        if not self._adds_space:
            return encode(self._tokenizer, text, "suffix", special=False)
        mark, ids = (encode(self._tokenizer, one, "suffix", special=False) for one in (_INSIDE, _INSIDE + text))
        return ids[len(mark) :] if ids[: len(mark)] == mark else encode(self._tokenizer, text, "suffix", special=False)
