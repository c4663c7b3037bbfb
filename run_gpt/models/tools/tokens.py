"""Special tokens: their ids, and decoding in which the tokens that mark calls stay visible."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from run_gpt.models.token_bytes import decoder


def visible_decode(tokenizer: Any, visible: Collection[str] = ()) -> Callable[[Sequence[int]], str]:
    """Return a function from token ids to their text without special tokens, except those in `visible`.

    Ids without a token leave nothing.
    """
    added, special = tokenizer.added_tokens_decoder, _special_ids(tokenizer)
    hidden = special - {int(token_id) for token_id, token in added.items() if token.content in visible}

    if hidden == special:
        return decoder(tokenizer, skip_special_tokens=True)
    decode = decoder(tokenizer)
    return lambda ids: decode([token_id for token_id in ids if token_id not in hidden])


def wordless_ids(tokenizer: Any) -> set[int]:
    """Return the ids of tokens that never match a grammar's texts: in llguidance, special ones and those in `<>`."""
    added = tokenizer.added_tokens_decoder.items()
    tags = {int(token_id) for token_id, token in added if token.content[:1] == "<" and token.content[-1:] == ">"}
    return _special_ids(tokenizer) | tags


def _special_ids(tokenizer: Any) -> set[int]:
    added = tokenizer.added_tokens_decoder.items()
    return {int(token_id) for token_id, token in added if token.special} | set(tokenizer.all_special_ids)
