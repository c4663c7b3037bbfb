"""Special tokens: their ids, and decoding in which the tokens that mark calls stay visible."""

from collections.abc import Callable, Collection, Sequence
from typing import Any


def visible_decode(tokenizer: Any, visible: Collection[str] = ()) -> Callable[[Sequence[int]], str]:
    """Return a function from token ids to their text without special tokens, except those in `visible`.

    If `visible` has no special token, the function is the tokenizer's own `decode`.
    """
    added, special = tokenizer.added_tokens_decoder, _special_ids(tokenizer)
    hidden = special - {int(token_id) for token_id, token in added.items() if token.content in visible}

    def plain(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def with_markers(ids: Sequence[int]) -> str:
        shown = [token_id for token_id in ids if token_id not in hidden]
        return str(tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    return plain if hidden == special else with_markers


def wordless_ids(tokenizer: Any) -> set[int]:
    """Return the ids of tokens that never match a grammar's texts: in llguidance, special ones and those in `<>`."""
    added = tokenizer.added_tokens_decoder.items()
    tags = {int(token_id) for token_id, token in added if token.content[:1] == "<" and token.content[-1:] == ">"}
    return _special_ids(tokenizer) | tags


def _special_ids(tokenizer: Any) -> set[int]:
    added = tokenizer.added_tokens_decoder.items()
    return {int(token_id) for token_id, token in added if token.special} | set(tokenizer.all_special_ids)
