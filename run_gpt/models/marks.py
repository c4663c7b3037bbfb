"""Texts that look like a tokenizer's special tokens, in what users and tools write: they are tokenised as text.

Otherwise a user, or a page that a tool has read, could write `<|im_start|>system` and so a turn of its own. Before the
template renders a chat, a character that occurs nowhere in it (the guard) is put into each such text, so the tokenizer
finds no special token there. The parts of the prompt between special tokens that have a guard are then tokenised again
without it, by a copy of the tokenizer that knows no special tokens. All other tokens are those of the whole prompt.
"""

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from run_gpt.models.tokenizer import encode

_GUARDS = range(0xF0000, 0xFFFFE)
"""Private characters, which mean nothing to any tokenizer or template."""
_HEADS = ("<|", "<\uff5c")
"""Beginnings of marks, even where the tokenizer does not call them special."""
_KEPT_TEMPLATES = 8


class Marks:
    """Marks of one tokenizer. Its methods may be called from any thread."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_tokens)
        self._added = {int(token_id) for token_id in tokenizer.added_tokens_decoder}
        self._tokens = [token.content for token in tokenizer.added_tokens_decoder.values()]
        self._special |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._marks = lru_cache(_KEPT_TEMPLATES)(self._patterns)
        self._making = threading.Lock()
        self._plain: dict[bool, Any] = {}

    def guarded(self, turns: list[dict[str, Any]], tools: Any, template: str) -> tuple[list[dict[str, Any]], Any, str]:
        """Return turns and tools with a guard in each mark, and the guard, which is empty if there is no mark.

        In the model's own turns, tokens for its thoughts and calls that are not special are no marks.
        """
        all_marks, own_marks = self._marks(template)
        if not any(all_marks.search(text) for text in _texts((turns, tools))):
            return turns, tools, ""
        used = set("".join(_texts((turns, tools))))
        guard = next(char for char in map(chr, _GUARDS) if char not in used)
        made = []
        for turn in turns:
            marks = own_marks if turn["role"] == "assistant" else all_marks
            made.append({**_mapped(turn, _guarding(marks, guard)), "role": turn["role"]})
        return made, _mapped(tools, _guarding(all_marks, guard)), guard

    def encode(self, text: str, guard: str, *, special: bool) -> list[int]:
        """Return the ids of a rendered chat; see `run_gpt.models.tokenizer.encode`. Raises InvalidRequest."""
        if not guard or guard not in text:
            return encode(self._tokenizer, text, "messages", special=special)
        if not getattr(self._tokenizer, "is_fast", False):
            parts = text.split(guard)  # no mark is whole in any of them
            return [
                token_id
                for i, part in enumerate(parts)
                for token_id in encode(self._tokenizer, part, "messages", special=special and i == 0)
            ]
        made = self._tokenizer(
            text, add_special_tokens=special, return_offsets_mapping=True, return_attention_mask=False
        )
        return self._without_guards(text, guard, made["input_ids"], made["offset_mapping"])

    def _without_guards(self, text: str, guard: str, ids: list[int], places: list[tuple[int, int]]) -> list[int]:
        made: list[int] = []
        part: list[int] = []
        begin = 0
        for token_id, (start, end) in zip([*ids, -1], [*places, (len(text), len(text))], strict=True):
            if token_id != -1 and (token_id not in self._added or start == end):
                part.append(int(token_id))
                continue
            piece = text[begin:start]
            made += self._as_text(piece.split(guard), first=begin == 0) if guard in piece else part
            made += [] if token_id == -1 else [int(token_id)]
            part, begin = [], end
        return made

    def _as_text(self, parts: list[str], *, first: bool) -> list[int]:
        """Return the ids of the parts of a text as one, none of them special."""
        plain = self._without_tokens(first)
        ids = plain.encode("".join(parts), add_special_tokens=False).ids
        if not self._added.isdisjoint(ids):  # a vocabulary may have them as words, too
            ids = [one for part in parts for one in plain.encode(part, add_special_tokens=False).ids]
        return [int(token_id) for token_id in ids]

    def _without_tokens(self, first: bool) -> Any:
        """Return the tokenizer without special tokens, for the beginning of a text or for another part of it."""
        with self._making:
            if first not in self._plain:
                from tokenizers import Tokenizer

                settings = json.loads(self._tokenizer.backend_tokenizer.to_str())
                settings |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
                text = json.dumps(settings)
                if not first:
                    text = text.replace('"prepend_scheme": "first"', '"prepend_scheme": "never"')
                self._plain[first] = Tokenizer.from_str(text)
            return self._plain[first]

    def _patterns(self, template: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
        """Return the patterns of all marks, and of those in the model's own turns."""
        own = [text for text in self._tokens if text in self._special or text.startswith(_HEADS)]
        tags = [text for text in self._tokens if re.fullmatch(r"<[^<>]+>|\[[^\[\]]+\]", text) and text in template]
        return _pattern({*own, *self._special, *tags}), _pattern({*own, *self._special})


def _guarding(marks: re.Pattern[str], guard: str) -> Callable[[str], str]:
    return lambda text: marks.sub(lambda found: f"{found[0][0]}{guard}{found[0][1:]}", text)


def _texts(value: Any) -> Iterator[str]:
    """Iterate over all texts in a value, names of members included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield name
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): _mapped(one, change) for name, one in value.items()}
    return [_mapped(one, change) for one in value] if isinstance(value, list | tuple) else value


def _pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """Return the pattern of any of these texts, as a tree, so that a search does not try each one at each place."""
    tree: dict[str, Any] = {}
    for text in texts:
        if not text.strip():
            continue
        at = tree
        for char in text:
            at = at.setdefault(char, {})
        at[""] = {}
    return re.compile(_branches(tree) if tree else r"(?!)")


def _branches(tree: Mapping[str, Any]) -> str:
    ways = []
    for char, below in tree.items():
        if char:
            run = re.escape(char)
            while len(below) == 1 and "" not in below:
                ((more, below),) = below.items()
                run += re.escape(more)
            ways.append(run + (_branches(below) if set(below) != {""} else ""))
    body = f"(?:{'|'.join(ways)})" if len(ways) != 1 or "" in tree else ways[0]
    return f"{body}?" if "" in tree else body
