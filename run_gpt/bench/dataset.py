"""Prompts and chats from a JSON or JSON Lines file: texts, chats, or ShareGPT's form."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from run_gpt.errors import SetupError

FORMS = 'a text, {"prompt": text}, {"messages": [...]} or {"conversations": [{"from", "value"}, ...]}'
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Entry:
    """One line of a dataset: a text, or the messages of a chat up to its last question."""

    text: str | None = None
    messages: tuple[dict[str, Any], ...] = ()
    max_tokens: int | None = None
    """Most tokens of the answer; None if the file does not set it."""


def read(path: Path) -> list[Entry]:
    """Read the entries of a file, in order. Raises SetupError, which names the invalid entry."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"--dataset {path}: {getattr(error, 'strerror', None) or 'this is not UTF-8'}") from None
    entries = [_entry(item, f"--dataset {path}: entry {i}") for i, item in enumerate(_items(text, path), 1)]
    if not entries:
        raise SetupError(f"--dataset {path}: there is no entry in it")
    return entries


def _items(text: str, path: Path) -> list[Any]:
    """Return the members of a JSON list, or else the JSON value of each line that is not empty."""
    if text.lstrip().startswith("["):
        try:
            return list(json.loads(text))
        except ValueError as error:
            raise SetupError(f"--dataset {path}: this is no JSON: {error}") from None
    items = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                items.append(json.loads(line))
            except ValueError as error:
                raise SetupError(f"--dataset {path}: line {number} is no JSON: {error}") from None
    return items


def _entry(item: Any, where: str) -> Entry:
    if isinstance(item, str):
        item = {"prompt": item}
    if not isinstance(item, dict):
        raise SetupError(f"{where} is none: write {FORMS}")
    limit = item.get("max_tokens")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise SetupError(f"{where}: max_tokens is {limit!r}: write a whole number of at least 1")
    text = item.get("prompt", item.get("text"))
    if isinstance(text, str) and text:
        return Entry(text=text, max_tokens=limit)
    messages = _messages(item)
    while messages and messages[-1].get("role") == "assistant":  # the model is to answer this
        messages.pop()
    if not messages:
        raise SetupError(f"{where} is none: write {FORMS}")
    return Entry(messages=tuple(messages), max_tokens=limit)


def _messages(item: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the messages of a chat in either form; an empty list if one of them is not a valid message."""
    turns = item.get("messages", item.get("conversations"))
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return []
    if "messages" in item:
        return [dict(turn) for turn in turns] if all("role" in turn for turn in turns) else []
    known = [(_ROLES.get(str(turn.get("from"))), turn.get("value")) for turn in turns]
    if not all(role and isinstance(value, str) for role, value in known):
        return []
    return [{"role": role, "content": value} for role, value in known]
