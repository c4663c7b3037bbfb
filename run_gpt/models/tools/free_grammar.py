"""Grammars of answers that may be any text or calls: what begins as a call must continue as one.

A call begins with the format's marker, or as an object without a marker, bare or first in a list, once its first member
is a known name (see ToolParser.at_value for the places of such an object). Up to that point the object may be an answer
in JSON that is not a call. The texts must be UTF-8 and are otherwise free. A call is not recognised if there is a
special token amid the letters of its beginning, since the answer's text does not show that token.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from run_gpt.models.tools.function import Function
from run_gpt.models.tools.grammar import CallForm, lark_text

_BLANK = r"[ \t\r\n]"  # JSON's white space
_INNER = rf'\[|"{_BLANK}*:|[}}\]"]{_BLANK}*,'
"""Characters before a value that is within another one."""
_TERMINALS = rf"""
ANY: /(?s:.*)/
TEXT: /(?s:.+)/
BEFORE: /(?s:(.*{_BLANK})?)/ & ~/(?s:.*({_INNER}){_BLANK}*)/
BLANKS: /{_BLANK}*/
TO_NAME: BLANKS "\"name\"" BLANKS ":" BLANKS
CLOSE: /{_BLANK}{{0,8}}\}}/
BETWEEN: /{_BLANK}{{0,8}}[;,]?{_BLANK}{{1,8}}/
LISTED: /{_BLANK}{{0,8}},{_BLANK}{{0,8}}/
LIST_END: /{_BLANK}{{0,8}}\]/
AFTER: /{_BLANK}{{1,8}}|{_BLANK}{{0,8}}(```|<\/tools>){_BLANK}{{0,8}}/
"""


def text_or_calls(
    form: CallForm, functions: Sequence[Function], tokens: Mapping[str, int], others: Sequence[int], *, several: bool
) -> str:
    """Return llguidance's Lark grammar of a text, or of one or more calls, which text may precede.

    `tokens` are as in CallForm.lark; `others` are the ids of the other tokens that never match a grammar's texts.
    """
    head, rest = _split(form.marker, tokens)
    others = [token_id for token_id in others if not (rest and token_id == tokens.get(head))]
    first = f" | <[{tokens[head]}]>" if head and rest else ""  # it begins calls and other parts of an answer
    starts, rules = ["text"], [f"text: (TEXT | other{first})*"]
    rules.append(f"other: <[{_ranges(others)}]>" if others else 'other: ""')
    if form.marker:
        starts.append(f"text marker first_call {form.rest(tokens, several=several)}")
        rules += _marked(form, functions, tokens)
    for way, before in _ways(form).items():
        starts.append(f"text {way}")
        rules += _bare(form, functions, way, before, several=several)
    rules.append(_object(form, functions))
    return "\n".join(["start: " + " | ".join(starts), *rules]) + _TERMINALS + form.call_rules(functions, tokens)


def no_call(form: CallForm, functions: Sequence[Function]) -> str:
    """Return the grammar of the texts in which no call begins; it allows no special tokens and none in `<>`."""
    names = " | ".join(json.dumps(json.dumps(function.name, ensure_ascii=False)) for function in functions)
    begins = [f"({' | '.join(_ways(form).values())}) ({names})"]
    if form.marker:
        begins.append(f"ANY {json.dumps(form.marker)}")
    return f"start: NO_CALL\nNO_CALL: ANY & ~(({' | '.join(begins)}) ANY){_TERMINALS}"


def opening(form: CallForm, names: Iterable[str]) -> re.Pattern[str]:
    """Return the pattern of the end of a text up to the name of a call without a marker, as in `text_or_calls`."""
    first = rf"(?:\[{_BLANK}*)?" if form.between is not None else ""
    marker = form.tag or form.marker
    tag = f"|{re.escape(marker)}{_BLANK}*" if marker else ""
    known = "|".join(re.escape(json.dumps(name, ensure_ascii=False)) for name in names)
    return re.compile(rf'(?:\A|{_BLANK}{tag}){first}\{{{{1,2}}{_BLANK}*"name"{_BLANK}*:{_BLANK}*(?:{known})\Z')


def _ways(form: CallForm) -> dict[str, str]:
    """Return terminals, by name, for the possible beginnings of an object without a marker, up to its name."""
    ways = {"bare": 'BEFORE "{" TO_NAME', "doubled": 'BEFORE "{{" TO_NAME'}
    if form.tag:
        ways["tagged"] = f'ANY {json.dumps(form.tag)} BLANKS "{{" TO_NAME'
    return ways if form.between is None else {**ways, "listed": 'BEFORE "[" BLANKS "{" TO_NAME'}


def _bare(form: CallForm, functions: Sequence[Function], way: str, before: str, *, several: bool) -> list[str]:
    """Return the rules of calls without a marker: once a text begins like one (`lazy`), it is no text.

    Tokens that match no text may come before the call, since most of them are not shown.
    """
    rules, calls = [], []
    for i, function in enumerate(functions):
        begun, name = f"{way}_{i}", json.dumps(json.dumps(function.name, ensure_ascii=False))
        rules += [f"{begun}[lazy]: {begun.upper()}", f"{begun.upper()}: {before} {name}"]
        calls.append(f"{begun} to_arguments object_{i}")
    close = 'CLOSE "}"' if way == "doubled" else "CLOSE"
    more = {"bare": "(BETWEEN object)*", "listed": "(LISTED object)*"}.get(way, "")
    repeated = more if several and form.between is not None else ""
    end = "LIST_END" if way == "listed" else ""
    return [*rules, f"{way}: ({' | '.join(calls)}) {close} {repeated} {end} AFTER?"]


def _object(form: CallForm, functions: Sequence[Function]) -> str:
    """Return the rules of a call's object after the first one, and of the text between name and arguments."""
    key = "parameters" if "parameters" in form.arguments else "arguments"
    separator = rf'TO_ARGUMENTS: /{_BLANK}{{0,8}},{_BLANK}{{0,8}}"{key}"{_BLANK}{{0,8}}:{_BLANK}{{0,8}}/'
    names = [json.dumps(json.dumps(function.name, ensure_ascii=False)) for function in functions]
    calls = " | ".join(f"{name} to_arguments object_{i}" for i, name in enumerate(names))
    return f'object: OBJECT ({calls}) CLOSE\nOBJECT: "{{" TO_NAME\nto_arguments: TO_ARGUMENTS\n{separator}'


def _marked(form: CallForm, functions: Sequence[Function], tokens: Mapping[str, int]) -> list[str]:
    """Return the rules of the first call after a marker; the text ends where a spelled marker is complete (`lazy`).

    A marker may be a token with text after it: then the text ends where this is complete.
    """
    calls = []
    for i, function in enumerate(functions):
        first = lark_text(form.first.removeprefix(form.marker), tokens)
        without = "" if form.first else form.marker
        before = form.lark_before(function.name, tokens, without=without)
        calls.append(f"{first} {before} arguments_{i} {lark_text(form.end, tokens)}")
    head, rest = _split(form.marker, tokens)
    ways = ["spelled"] if not head else [f"<[{tokens[head]}]> {'headed' if rest else ''}", "spelled"]
    return [
        f"marker: {' | '.join(ways)}",
        *(["headed[lazy]: HEADED", f"HEADED: {json.dumps(rest)}"] if head and rest else []),
        "spelled[lazy]: SPELLED",
        f"SPELLED: ANY {json.dumps(form.marker)}",
        f"first_call: {' | '.join(calls)}",
    ]


def _split(marker: str, tokens: Mapping[str, int]) -> tuple[str, str]:
    """Return the token that begins a marker, empty if there is none, and the text after it."""
    head = next((token for token in tokens if marker.startswith(token)), "")
    return head, marker.removeprefix(head)


def _ranges(ids: Sequence[int]) -> str:
    """Return token ids in Lark's notation: `0-2,7`."""
    runs = groupby(enumerate(sorted(ids)), lambda place: place[1] - place[0])
    ends = [[token_id for _, token_id in run] for _, run in runs]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in ends)
