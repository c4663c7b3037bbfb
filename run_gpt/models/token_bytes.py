"""Bytes of single tokens, from the way their tokenizer writes them: some tokens are only a part of a character."""

import functools
import re
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"


class TokenBytes:
    """Mapping from a token's id to its bytes in UTF-8."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))

    def __call__(self, token_id: int) -> bytes:
        """Return the token's bytes; for a special token, those of its name."""
        piece = self._tokenizer.convert_ids_to_tokens(token_id)
        if not isinstance(piece, str):  # the model has more logits than the tokenizer has tokens
            return b""
        if token_id in self._special:
            return piece.encode()
        if self._writes_bytes_as_characters:
            return b"".join(_bytes_of(character) for character in piece)
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


def _bytes_of(character: str) -> bytes:
    byte = _byte_of_character().get(character)
    return character.encode() if byte is None else bytes([byte])


@functools.cache
def _byte_of_character() -> dict[str, int]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}
