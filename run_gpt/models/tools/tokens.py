"""From token ids to text in which the markers of calls can be seen."""

from collections.abc import Callable, Collection, Sequence
from typing import Any


def visible_decode(tokenizer: Any, visible: Collection[str] = ()) -> Callable[[Sequence[int]], str]:
    """A function from token ids to their text without special tokens, but for those in `visible`.

    Without a special token in `visible` it is the tokenizer's own `decode`.
    """
    added = tokenizer.added_tokens_decoder
    special = {int(token_id) for token_id, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    hidden = special - {int(token_id) for token_id, token in added.items() if token.content in visible}

    def plain(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def with_markers(ids: Sequence[int]) -> str:
        shown = [token_id for token_id in ids if token_id not in hidden]
        return str(tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    return plain if hidden == special else with_markers
