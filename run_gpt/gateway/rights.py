"""Rights of a key: the role that says what its requests may do, and the limits of how much."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from run_gpt.api.endpoints import Handler
from run_gpt.errors import Forbidden, SetupError

Role = Literal["admin", "user", "monitor"]

MOST = 10**9
"""Greatest limit that a file may give."""
HOW = "after the key come role=admin, role=user or role=monitor, requests=N, tokens=N, each once; a key has no spaces"

_MODELS = frozenset({Handler.LIST_MODELS, Handler.SHOW_MODEL})
# Lists of what is allowed: a handler that is added later is an admin's until it stands here.
_ALLOWED: Mapping[Role, frozenset[Handler]] = {
    "admin": frozenset(Handler),
    "user": _MODELS | {Handler.MODEL, Handler.TRANSLATED},
    "monitor": _MODELS,
}


@dataclass(frozen=True, kw_only=True)
class Rights:
    """Rights of one key."""

    role: Role = "admin"
    requests: int | None = None
    """Most requests at once; None: no limit."""
    tokens: int | None = None
    """Most tokens a minute, of prompts and answers together; None: no limit."""

    @property
    def limits(self) -> dict[str, int]:
        """The limits that there are, by their names."""
        given = {"requests": self.requests, "tokens": self.tokens}
        return {name: limit for name, limit in given.items() if limit is not None}

    def check(self, handler: Handler) -> None:
        """Raise Forbidden for a request that this handler answers, if the role does not allow it."""
        if handler not in _ALLOWED[self.role]:
            raise self._refusal("this request")

    def check_metrics(self) -> None:
        """Raise Forbidden if the role may not read the metrics, which show the use of every key."""
        if self.role == "user":
            raise self._refusal("/metrics", "or role=monitor")

    def _refusal(self, what: str, more: str = "") -> Forbidden:
        needed = " ".join(filter(None, ("role=admin", more)))
        return Forbidden(f"a key with role={self.role} may not use {what}: take one with {needed}")


EVERYTHING = Rights()
"""Rights of a request where there are no keys, and of a key for which the file gives none."""


def parse_rights(words: Sequence[str], where: str) -> Rights:
    """Return the rights in the words that follow a key. Raises SetupError, which repeats no word: it may be a key's."""
    given: dict[str, str | int] = {}
    for word in words:
        name, _, value = word.partition("=")
        number = int(value) if re.fullmatch(r"[0-9]{1,10}", value) else 0
        if name in given:
            raise SetupError(f"{where}: {HOW}")
        if name == "role" and value in get_args(Role):
            given[name] = value
        elif name in ("requests", "tokens") and 1 <= number <= MOST:
            given[name] = number
        elif name in ("requests", "tokens"):
            raise SetupError(f"{where}: {name}=N takes a whole number from 1 to {MOST}")
        else:
            raise SetupError(f"{where}: {HOW}")
    return Rights(**cast("dict[str, int]", given))  # type: ignore[arg-type]
