"""Grammars of answers that may be any text or calls: an answer that begins as a call must continue as one.

A call begins with the format's marker. In a format without a marker, a call begins in the object at the answer's
beginning, or in the first object of a list there, once its first member is a known name. Up to that point the object
may be an answer in JSON that is not a call. The texts must be UTF-8 and are otherwise free. A call is not recognised
if there is a special token amid the letters of its beginning, since the answer's text does not show that token.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from run_gpt.models.tools.function import Function
from run_gpt.models.tools.grammar import CallForm, lark_text

_BLANKS = r"[ \t\r\n]*"  # JSON's white space
_TERMINALS = rf"""
ANY: /(?s:.*)/
TEXT: /(?s:.+)/
BLANKS: /{_BLANKS}/
TO_NAME: BLANKS "{{" BLANKS "\"name\"" BLANKS ":" BLANKS
"""


def text_or_calls(
    form: CallForm, functions: Sequence[Function], tokens: Mapping[str, int], others: Sequence[int], *, several: bool
) -> str:
    """Return llguidance's Lark grammar of a text, or of one or more calls; with a marker, text may precede the calls.

    `tokens` are as in CallForm.lark; `others` are the ids of the other tokens that never match a grammar's texts.
    """
    if form.marker:
        rules = _after_text(form, functions, tokens, several=several)
    else:
        rules = _from_beginning(form, functions, several=several)
    rules += ["text: (TEXT | other)*", f"other: <[{_ranges(others)}]>" if others else 'other: ""']
    return "\n".join(rules) + _TERMINALS + form.call_rules(functions, tokens)


def no_call(form: CallForm, functions: Sequence[Function]) -> str:
    """Return the grammar of the texts in which no call begins; it allows no special tokens and none in `<>`."""
    names = " | ".join(json.dumps(form.named(function.name)) for function in functions)
    begin = f"ANY {json.dumps(form.marker)}" if form.marker else f"({' | '.join(_ways(form).values())}) ({names})"
    return f"start: NO_CALL\nNO_CALL: ANY & ~({begin} ANY){_TERMINALS}"


def opening(form: CallForm, names: Iterable[str]) -> re.Pattern[str]:
    """Return the pattern of a call's beginning without a marker, as in `text_or_calls`: the answer up to its name."""
    before = f"(?:{re.escape(form.tag)})?" + (rf"(?:{_BLANKS}\[)?" if form.first else "")
    known = "|".join(re.escape(form.named(name)) for name in names)
    return re.compile(rf'{before}{_BLANKS}\{{{_BLANKS}"name"{_BLANKS}:{_BLANKS}(?:{known})')


def _ways(form: CallForm) -> dict[str, str]:
    """Return terminals, by name, for the possible beginnings of an answer without a marker, up to the first name."""
    bare = f"{json.dumps(form.tag)}? TO_NAME" if form.tag else "TO_NAME"
    return {"bare": bare, "listed": f"BLANKS {json.dumps(form.first)} TO_NAME"} if form.first else {"bare": bare}


def _from_beginning(form: CallForm, functions: Sequence[Function], *, several: bool) -> list[str]:
    """Return the rules of a whole answer that is text or calls: once it begins like a call (`lazy`), it is not text.

    Tokens that match no text may come before the call, since most of them are not shown.
    """
    starts, rules = ["text"], []
    for way, before in _ways(form).items():
        calls = []
        for i, function in enumerate(functions):
            begun, name = f"{way}_{i}", json.dumps(form.named(function.name))
            rules += [f"{begun}[lazy]: {begun.upper()}", f"{begun.upper()}: {before} {name}"]
            calls.append(f"{begun} {lark_text(form.arguments, {})} arguments_{i} {lark_text(form.end, {})}")
        rules.append(f"{way}: {' | '.join(calls)}")
        starts.append(f"other* {way} {form.rest({}, several=several) if way == 'listed' else ''}")
    return ["start: " + " | ".join(starts), *rules]


def _after_text(
    form: CallForm, functions: Sequence[Function], tokens: Mapping[str, int], *, several: bool
) -> list[str]:
    """Return the rules of a text and the calls after it; the text ends where a spelled marker is complete (`lazy`)."""
    calls = []
    for i, function in enumerate(functions):
        written = f"{form.first}{form.before(function.name)}".removeprefix(form.marker)
        calls.append(f"{lark_text(written, tokens)} arguments_{i} {lark_text(form.end, tokens)}")
    token = f"<[{tokens[form.marker]}]> | " if form.marker in tokens else ""
    return [
        f"start: text | text marker first_call {form.rest(tokens, several=several)}",
        f"marker: {token}spelled",
        "spelled[lazy]: SPELLED",
        f"SPELLED: ANY {json.dumps(form.marker)}",
        f"first_call: {' | '.join(calls)}",
    ]


def _ranges(ids: Sequence[int]) -> str:
    """Return token ids in Lark's notation: `0-2,7`."""
    runs = groupby(enumerate(sorted(ids)), lambda place: place[1] - place[0])
    ends = [[token_id for _, token_id in run] for _, run in runs]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in ends)
