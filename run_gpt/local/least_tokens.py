"""Lower bound of a text's number of tokens, found without its tokenizer: tokenising a long text takes seconds.

A token that stands for n bytes of a text gives each of them the share 1/n. No byte has a smaller share than 1/m, where
m is the size of the largest token in the vocabulary that has this byte. So the sum of these smallest shares, over the
bytes of a text, is at most the number of its tokens. A byte that a tokenizer may drop, change, or join with an unknown
part of the text has the share 0. If a tokenizer has steps that are not known here, all have.
"""

import json
import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from run_gpt.models.token_bytes import written_bytes

AT_ONCE = 1 << 18
"""Number of characters that are counted together: numpy holds Python's lock meanwhile."""

_SPACE = "▁"
_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
"""Normal forms of Unicode: they keep ASCII, except for a character before a combining one."""
_KEEPING = ("ByteLevel", "Digits", "Metaspace")
"""Kinds of splitting that drop no character; also Split and Punctuation, with all but one of their settings."""


class LeastTokens:
    """Lower bound for one tokenizer. Any thread may call it; the first call takes up to a second."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def __call__(self, text: str, enough: int) -> int:
        """Return a number of tokens that `text` has at least. Beyond `enough` it is not counted on."""
        if len(text) * 4 <= enough or self._shares is None:
            return 0
        least = 0.0
        for start in range(0, len(text), AT_ONCE):
            data = np.frombuffer(text[start : start + AT_ONCE].encode("utf-8", "surrogatepass"), np.uint8)
            if self._has_forms:
                data = data[:-1][data[1:] < 128]
            least += float(np.bincount(data, minlength=256) @ self._shares)
            if least > enough + 1:
                break
        return math.floor(least * (1 - 1e-9))

    @cached_property
    def _normalizers(self) -> list[dict[str, Any]]:
        return list(_parts(self._tokenizer.backend_tokenizer.normalizer, "normalizers"))

    @cached_property
    def _has_forms(self) -> bool:
        return any(step["type"] in _FORMS for step in self._normalizers)

    @cached_property
    def _shares(self) -> Any:
        """Smallest share of each byte: [256]. None for a tokenizer that may drop or join anything."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None or type(backend.model).__name__ not in ("BPE", "Unigram") or _marks_words(backend.model):
            return None
        splitters = list(_parts(backend.pre_tokenizer, "pretokenizers"))
        if not all(map(_keeps_text, self._normalizers)) or not all(map(_keeps_all, splitters)):
            return None
        bytewise = any(step["type"] == "ByteLevel" for step in splitters)
        if bytewise != ("ByteLevel" in repr(backend.decoder)):
            return None
        shares = 1 / np.maximum(1, self._largest(bytewise=bytewise))
        kept = self._never_lost(backend.model, bytewise=bytewise)
        shares[[byte for byte in range(256) if byte not in kept]] = 0
        if self._has_forms:
            shares[128:] = 0
        if any(token.lstrip or token.rstrip for token in self._tokenizer.added_tokens_decoder.values()):
            shares[128:] = 0  # such a token takes the spaces beside it, of any kind
            shares[[byte for byte in range(128) if chr(byte).isspace()]] = 0
        return shares

    def _largest(self, *, bytewise: bool) -> Any:
        """Return the size of the largest token that has each byte: [256]."""
        largest = np.zeros(256, np.int64)
        added = self._tokenizer.added_tokens_decoder
        for piece, token_id in self._tokenizer.get_vocab().items():
            data = written_bytes(piece) if bytewise and token_id not in added else piece.encode()
            both = data if bytewise else data + b" " * (_SPACE in piece)  # the sign is a space, or itself
            where = list(set(both))
            largest[where] = np.maximum(largest[where], len(data))
        return largest

    def _never_lost(self, model: Any, *, bytewise: bool) -> set[int]:
        """Return the bytes that are always a part of a token that stands for them."""
        vocabulary = self._tokenizer.get_vocab()
        if bytewise:
            added = self._tokenizer.added_tokens_decoder
            singles = (written_bytes(piece) for piece, i in vocabulary.items() if len(piece) == 1 and i not in added)
            return {data[0] for data in singles if len(data) == 1}
        if model.byte_fallback and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)):
            return set(range(256))
        return {byte for byte in range(128) if chr(byte).replace(" ", _SPACE) in vocabulary}


def _marks_words(model: Any) -> bool:
    """Return True if a token differs within a word and at its end."""
    return bool(getattr(model, "continuing_subword_prefix", None) or getattr(model, "end_of_word_suffix", None))


def _parts(step: Any, name: str) -> Iterator[dict[str, Any]]:
    """Yield the steps of a normaliser or splitter of the tokenizers library; those of a sequence are its `name`."""
    if step is not None:
        yield from _flat(json.loads(step.__getstate__()), name)


def _flat(step: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    if step["type"] == "Sequence":
        for one in step[name]:
            yield from _flat(one, name)
    else:
        yield step


def _keeps_text(step: dict[str, Any]) -> bool:
    """Return True for a normaliser that leaves ASCII as it is, but for the sign of a space."""
    if step["type"] == "Replace":
        return bool(step["pattern"] == {"String": " "} and step["content"] == _SPACE)
    return step["type"] in ("Prepend", *_FORMS)


def _keeps_all(step: dict[str, Any]) -> bool:
    """Return True for a splitter that drops nothing."""
    if step["type"] in ("Split", "Punctuation"):
        return bool(step["behavior"] != "Removed")
    return step["type"] in _KEEPING
