"""Texts of token ids, and bytes of single tokens as their tokenizer writes them: some are only a part of a character.

A model may have more rows than its tokenizer has tokens: an id that means nothing has the text "".
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"


def decoder(tokenizer: Any, *, skip_special_tokens: bool = False) -> Callable[[Sequence[int]], str]:
    """Return a function from token ids to their text, in which ids without a token leave nothing."""
    known = known_ids(tokenizer)

    def decode(ids: Sequence[int]) -> str:
        shown = list(ids) if known is None else [token_id for token_id in ids if token_id in known]
        return str(tokenizer.decode(shown, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False))

    return decode


def known_ids(tokenizer: Any) -> frozenset[int] | None:
    """Return the ids that have a token; None for a tokenizer that passes over all others by itself, as fast ones do."""
    if getattr(tokenizer, "is_fast", True):
        return None
    return frozenset((*tokenizer.get_vocab().values(), *tokenizer.added_tokens_decoder))


class TokenBytes:
    """Mapping from a token's id to its bytes in UTF-8."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._known = known_ids(tokenizer)
        self._special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))

    def __call__(self, token_id: int) -> bytes:
        """Return the token's bytes; for a special token, those of its name."""
        if self._known is not None and token_id not in self._known:
            return b""
        piece = self._tokenizer.convert_ids_to_tokens(token_id)
        if not isinstance(piece, str):  # the model has more logits than the tokenizer has tokens
            return b""
        if token_id in self._special:
            return piece.encode()
        if self._writes_bytes_as_characters:
            return written_bytes(piece)
        if match := _BYTE.fullmatch(piece):
            return bytes([int(match[1], 16)])
        return piece.replace(_SPACE, " ").encode()

    @functools.cached_property
    def _writes_bytes_as_characters(self) -> bool:
        """True when each byte of a token is written as one printable character, as in GPT-2's tokenizer."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is not None and "ByteLevel" in repr(backend.decoder):
            return True
        return getattr(self._tokenizer, "byte_decoder", None) is not None


def written_bytes(piece: str) -> bytes:
    """Return the bytes of a token of a tokenizer that writes each byte as one character, as GPT-2's does."""
    return b"".join(map(_bytes_of, piece))


def _bytes_of(character: str) -> bytes:
    byte = _byte_of_character().get(character)
    return character.encode() if byte is None else bytes([byte])


@functools.cache
def _byte_of_character() -> dict[str, int]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}
