"""The grammars of answers that may be any text, where only what begins as a call is held to be one.

A call begins with the format's marker. Without a marker it begins in the object that an answer begins with, or in the
first of a list, when its first member is a known name: until then the object may be an answer in JSON, which need not
be a call. The texts are UTF-8, and nothing else is asked of them. Not seen is a call with a special token amid the
letters of its beginning, which the answer's text does not show.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from run_gpt.models.tools.function import Function
from run_gpt.models.tools.grammar import CallForm, lark_text

_BLANKS = r"[ \t\r\n]*"  # what JSON has as white space
_TERMINALS = rf"""
ANY: /(?s:.*)/
TEXT: /(?s:.+)/
BLANKS: /{_BLANKS}/
TO_NAME: BLANKS "{{" BLANKS "\"name\"" BLANKS ":" BLANKS
"""


def text_or_calls(
    form: CallForm, functions: Sequence[Function], tokens: Mapping[str, int], others: Sequence[int], *, several: bool
) -> str:
    """llguidance's Lark grammar of a text, or of a call or more, before which a text may stand if there is a marker.

    `tokens` as in CallForm.lark; `others`: the ids of the other tokens that a grammar's texts never stand for.
    """
    if form.marker:
        rules = _after_text(form, functions, tokens, several=several)
    else:
        rules = _from_beginning(form, functions, several=several)
    rules += ["text: (TEXT | other)*", f"other: <[{_ranges(others)}]>" if others else 'other: ""']
    return "\n".join(rules) + _TERMINALS + form.call_rules(functions, tokens)


def no_call(form: CallForm, functions: Sequence[Function]) -> str:
    """The grammar of the texts in which no call begins; no token that is more than its text is in them."""
    names = " | ".join(json.dumps(form.named(function.name)) for function in functions)
    begin = f"ANY {json.dumps(form.marker)}" if form.marker else f"({' | '.join(_ways(form).values())}) ({names})"
    return f"start: NO_CALL\nNO_CALL: ANY & ~({begin} ANY){_TERMINALS}"


def opening(form: CallForm, names: Iterable[str]) -> re.Pattern[str]:
    """What `text_or_calls` takes for the beginning of a call without a marker: the answer up to the call's name."""
    before = f"(?:{re.escape(form.tag)})?" + (rf"(?:{_BLANKS}\[)?" if form.first else "")
    known = "|".join(re.escape(form.named(name)) for name in names)
    return re.compile(rf'{before}{_BLANKS}\{{{_BLANKS}"name"{_BLANKS}:{_BLANKS}(?:{known})')


def _ways(form: CallForm) -> dict[str, str]:
    """How an answer without a marker may begin up to the name in its first call: terminals, by names for them."""
    bare = f"{json.dumps(form.tag)}? TO_NAME" if form.tag else "TO_NAME"
    return {"bare": bare, "listed": f"BLANKS {json.dumps(form.first)} TO_NAME"} if form.first else {"bare": bare}


def _from_beginning(form: CallForm, functions: Sequence[Function], *, several: bool) -> list[str]:
    """The rules of a whole answer that is text or calls: where its beginning is a call's (`lazy`), it is no text.

    Tokens may come before it, since most of those that stand for no text are not shown.
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
    """The rules of a text and of the calls after it; where the marker ends in letters (`lazy`), the text has ended."""
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
    """Token ids as Lark has them: `0-2,7`."""
    runs = groupby(enumerate(sorted(ids)), lambda place: place[1] - place[0])
    ends = [[token_id for _, token_id in run] for _, run in runs]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in ends)
