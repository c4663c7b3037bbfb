"""Calls, their results and functions in the form that a chat template takes: its own form, or plain turns."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from run_gpt.errors import InvalidRequest
from run_gpt.models.tools.formats import ToolFormat
from run_gpt.models.tools.function import Function, object_of

Message = dict[str, Any]

_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")


def has_calls(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if a message has a call or is the result of one."""
    return any(message.get("tool_calls") or message["role"] == "tool" for message in messages)


def without_empty(message: Mapping[str, Any]) -> Message:
    """Return `message` without keys whose value is None, since templates test if a key is there; content is a text."""
    present = {key: value for key, value in message.items() if value is not None and key != "tool_calls"}
    return {**present, "content": message.get("content") or ""}


def native_turns(messages: Sequence[Mapping[str, Any]], tool_format: ToolFormat) -> list[Message]:
    """Return `messages` for a template that takes tools: arguments are objects, absent values have no key.

    Calls that were cut off, whose arguments are no JSON object, are text, and their results are user messages. Raises
    InvalidRequest for results of calls that were not made.
    """
    names: dict[str, str] = {}
    cut: set[str] = set()
    ids = _Ids(tool_format.ids)
    turns: list[Message] = []
    after_cut = False
    for i, message in enumerate(messages):
        turn = without_empty(message)
        is_cut = False
        if message["role"] == "tool":
            call = _call_of(message, names, i)
            if is_cut := call in cut:
                turn = {"role": "user", "content": _result(names[call], message)}
            else:
                turn.update(tool_call_id=ids.known(call), name=message.get("name") or names[call])
        elif message.get("tool_calls"):
            names |= _names(message)
            made = [(call, _as_object(call["function"])) for call in message["tool_calls"]]
            if any(function is None for _, function in made):
                cut |= {call["id"] for call, _ in made}
                turn["content"] = _with_calls(message, tool_format)
            else:
                cut -= {call["id"] for call, _ in made}
                turn["tool_calls"] = [
                    {"id": ids.of(call), "type": "function", "function": _for_template(function, tool_format)}
                    for call, function in made
                    if function is not None
                ]
        if after_cut and turn["role"] == "user":  # many templates require alternating roles
            turns[-1] = {**turns[-1], "content": f"{turns[-1]['content']}\n{turn['content']}"}
        else:
            turns.append(turn)
        after_cut = is_cut or (after_cut and turn["role"] == "user")
    return _one_by_one(turns) if tool_format.single else turns


def plain_turns(messages: Sequence[Mapping[str, Any]], tool_format: ToolFormat) -> list[Message]:
    """Return `messages` in the roles that every template knows: calls as the model's text, results as user messages.

    Results and the user message after them become one turn, since many templates require alternating roles. Raises
    InvalidRequest for results of calls that were not made.
    """
    names: dict[str, str] = {}
    turns: list[Message] = []
    after_result = False
    for i, message in enumerate(messages):
        role, content = message["role"], message.get("content") or ""
        is_result = role == "tool"
        if is_result:
            role, content = "user", _result(names[_call_of(message, names, i)], message)
        elif message.get("tool_calls"):
            names |= _names(message)
            content = _with_calls(message, tool_format)
        if after_result and role == "user":
            turns[-1]["content"] += f"\n{content}"
        else:
            turns.append({"role": role, "content": content})
        after_result = is_result or (after_result and role == "user")
    return turns


def description(functions: Sequence[Function], tool_format: ToolFormat, *, parallel: bool) -> str:
    """Describe the functions and the form of a call, for templates without tools; empty if there are no functions."""
    if not functions:
        return ""
    call = tool_format.form.write([("<name>", "<arguments as a JSON object>")]).replace('"<name>"', "<name>")
    lines = ["You can call functions. To call one, answer with nothing but a JSON object of this form:", call]
    if parallel:
        lines.append("To call several, answer with nothing but a JSON list of such objects.")
    lines += ["When no function helps, answer in words.", "", "The functions:"]
    lines += [json.dumps(function.as_tool()["function"], ensure_ascii=False) for function in functions]
    return "\n".join(lines)


def in_system_turn(turns: Sequence[Message], text: str) -> list[Message]:
    """Return `turns` with `text` appended to their system message, or as a new one if there is none."""
    if turns and turns[0]["role"] == "system":
        return [{"role": "system", "content": f"{turns[0]['content']}\n\n{text}"}, *turns[1:]]
    return [{"role": "system", "content": text}, *turns]


def in_user_turn(turns: Sequence[Message], text: str) -> list[Message]:
    """Return `turns` with `text` in front of the first user message, or as a new one at the end if there is none."""
    at = next((i for i, turn in enumerate(turns) if turn["role"] == "user"), None)
    if at is None:
        return [*turns, {"role": "user", "content": text}]
    return [*turns[:at], {**turns[at], "content": f"{text}\n\n{turns[at]['content']}"}, *turns[at + 1 :]]


def _names(message: Mapping[str, Any]) -> dict[str, str]:
    """Return the name of each call's function by the call's id; clients may reuse ids in later turns."""
    return {call["id"]: call["function"]["name"] for call in message["tool_calls"]}


def _call_of(message: Mapping[str, Any], names: Mapping[str, str], at: int) -> str:
    call = message.get("tool_call_id")
    if call not in names:
        raise InvalidRequest(f"messages[{at}].tool_call_id = {call!r}: no message makes this call", param="messages")
    return str(call)


def _result(name: str, message: Mapping[str, Any]) -> str:
    return f"Result of {name}: {message.get('content') or ''}"


def _with_calls(message: Mapping[str, Any], tool_format: ToolFormat) -> str:
    """Return the content of a message and its calls, as the model would have written them."""
    made = []
    for call in message["tool_calls"]:
        function = _as_object(call["function"])
        text = call["function"]["arguments"] if function is None else _json(function["arguments"])
        made.append((call["function"]["name"], text))
    return "\n".join(filter(None, (message.get("content"), tool_format.form.write(made))))


def _as_object(function: Mapping[str, Any]) -> Message | None:
    """Return the called function with its arguments as an object; None if they are none."""
    arguments = object_of(function["arguments"])
    return None if arguments is None else {"name": function["name"], "arguments": arguments}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _for_template(function: Message, tool_format: ToolFormat) -> Message:
    return {**function, "arguments": _json(function["arguments"])} if tool_format.text_arguments else function


class _Ids:
    """Ids of calls in the form that a template wants; each form depends only on the chat so far."""

    def __init__(self, form: str):
        self._form = form
        self._made = 0
        self._ids: dict[str, str] = {}

    def of(self, call: Mapping[str, Any]) -> str:
        """Return the id of a new call."""
        given = str(call["id"])
        if self._form == "numbered":
            self._ids[given] = f"functions.{call['function']['name']}:{self._made}"
        elif self._form == "short" and not _SHORT_ID.fullmatch(given):
            self._ids[given] = hashlib.sha256(given.encode()).hexdigest()[:9]
        self._made += 1
        return self.known(given)

    def known(self, given: str) -> str:
        """Return the id of the last call that had this one."""
        return self._ids.get(given, given)


def _one_by_one(turns: Sequence[Message]) -> list[Message]:
    """Split turns with several calls into turns with one call each, each followed by its result."""
    split: list[Message] = []
    left = list(turns)
    while left:
        turn = left.pop(0)
        calls = turn.get("tool_calls", ())
        if len(calls) < 2:
            split.append(turn)
            continue
        results = list(takewhile(lambda later: later["role"] == "tool", left))
        del left[: len(results)]
        for i, call in enumerate(calls):
            own = [result for result in results if result["tool_call_id"] == call["id"]]
            results = [result for result in results if result not in own]
            split += [{**turn, "content": "" if i else turn["content"], "tool_calls": [call]}, *own]
        split += results
    return split
