"""JSON from outside: its size is bounded before it is parsed, since the parser lets nothing else run meanwhile."""

import json
import math
import re
from collections.abc import Iterable
from itertools import chain
from typing import Any, NoReturn

from run_gpt.errors import InvalidRequest

MAX_TOKEN_IDS = 2**17
"""Most token ids in one request."""
MAX_VALUES = MAX_TOKEN_IDS + 2**14
"""Most values in a JSON text. They take about 20 ms to parse."""
MAX_MEMBERS = 2**15
"""Most members of all objects of a JSON text."""
MAX_DEPTH = 64
"""Most levels of arrays and objects in a value of any form, such as a schema."""
MAX_OBJECT_VALUES = 2**14
"""Most values in such an object, and names of its members."""
_SLICE = 2**16
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_PAIR = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..")
_PATH = 64
"""Most characters of a member's name in the path that an error gives."""


def parse_json(text: str, name: str) -> Any:
    """Return the value of a JSON text. Raises InvalidRequest: `name` is what the error calls the text."""
    check_size(text, name)
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise InvalidRequest(f"{name} is not a request: it is nested too deeply") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidRequest(f"{name} is not JSON: {error.msg} at {where}") from None
    except ValueError as error:  # a number of thousands of digits, NaN
        raise InvalidRequest(f"{name} is not JSON: {error}") from None
    if _SURROGATE.search(text) and _SURROGATE.search(_PAIR.sub("", text.replace("\\\\", "x"))):
        _check_unicode(value, name)
    return value


def _check_unicode(value: Any, name: str) -> None:
    """Raise InvalidRequest for a text anywhere, a name of a member included, with half of a pair of surrogates.

    Only an escape can bring it into JSON. Nothing after this can carry it, so it would fail late, or be altered.
    """
    left = [("", value)]
    while left:
        path, one = left.pop()
        if isinstance(one, dict):
            if lone := next((key for key in one if not _is_unicode(key)), None):
                raise _not_unicode(name, path, f"the name {lone!r}")
            left += [(f"{path}.{key[:_PATH]}", inner) for key, inner in one.items()]
        elif isinstance(one, list):
            left += [(f"{path}[{at}]", inner) for at, inner in enumerate(one)]
        elif isinstance(one, str) and not _is_unicode(one):
            raise _not_unicode(name, path, "a text")


def _not_unicode(name: str, path: str, found: str) -> InvalidRequest:
    param = path.removeprefix(".")
    place = f"{param}: it" if param else name
    return InvalidRequest(
        f"{place} has {found[:80]} with half of a pair of surrogates, such as \\ud800, which is not Unicode",
        param=param,
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_size(text: str, name: str) -> None:
    """Raise InvalidRequest for a JSON text with more than MAX_VALUES values or MAX_MEMBERS members.

    The text is read in slices, so that other threads can run in between.
    """
    values = members = begin = 0
    inside = False  # a string
    while begin < len(text):
        piece = text[begin : begin + _SLICE]
        if (len(piece) - len(piece.rstrip("\\"))) % 2:  # an escape goes on in the next slice
            piece = text[begin : begin + _SLICE + 1]
        begin += len(piece)
        parts = piece.replace("\\\\", "").replace('\\"', "").split('"')
        outside = "".join(parts[inside::2])
        inside ^= len(parts) % 2 == 0
        values += outside.count(",") + outside.count("[") + outside.count("{")
        members += outside.count(":")
        if values > MAX_VALUES:
            raise InvalidRequest(f"{name} has {values:,} or more JSON values, the limit is {MAX_VALUES:,}")
        if members > MAX_MEMBERS:
            raise InvalidRequest(f"{name} has objects with {members:,} or more members, the limit is {MAX_MEMBERS:,}")


def check_object(value: dict[str, Any]) -> dict[str, Any]:
    """Return an object of any form, for a validator.

    Raises ValueError above MAX_DEPTH or MAX_OBJECT_VALUES, and for text and numbers that JSON cannot carry.
    """
    level: list[Any] = [value]
    values = depth = 0
    while level:
        depth += 1
        values += len(level)
        if depth > MAX_DEPTH:
            raise ValueError(f"this has more than {MAX_DEPTH} levels of arrays and objects")
        containers = [one for one in level if isinstance(one, dict | list | tuple)]
        if values + sum(map(len, containers)) > MAX_OBJECT_VALUES:
            raise ValueError(f"this has more than {MAX_OBJECT_VALUES:,} names and values")
        _check_values(level)
        level = [inner for one in containers for inner in _inner(one)]
    return value


def _inner(container: Any) -> Iterable[Any]:
    return chain(container, container.values()) if isinstance(container, dict) else container


def _check_values(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, str) and not _is_unicode(value):
            raise ValueError("this has a text that is not Unicode")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("this has a number that is not finite")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")
