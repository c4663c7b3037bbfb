"""Requests of other APIs: each stands for native requests, whose answers make its own."""

import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

from pydantic import ValidationError

from run_gpt.api.answers import Answer, Body
from run_gpt.api.fields import Rules
from run_gpt.api.request import AnyRequest, invalid_request
from run_gpt.errors import InvalidRequest

INVALID = "INVALID_JSON"
"""Name of the only value of a call whose arguments are no JSON object, such as one that was cut off."""


def arguments_object(text: str) -> dict[str, Any]:
    """Return the arguments of a call as an object, for APIs that give them so."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {INVALID: text}


class EventWriter(Protocol):
    """Converter from the events of native streams to those of another API."""

    def events(self, which: int, event: Answer) -> Iterable[Body]:
        """Return the events made from an event of the native stream number `which`."""

    def plain(self, which: int, index: int, text: str, *, thought: bool) -> bytes | None:
        """Write the server-sent event of text alone, the fast way; None where such text makes other events.

        `index` is the number of the sequence in the native stream `which`. That stream has had an event before.
        `thought`: the text is thinking.
        """

    def end(self) -> Iterable[Body]:
        """Return the events after the last native one."""


class TranslatedRequest(AnyRequest):
    """A request of another API."""

    DIFFERS: ClassVar[Mapping[str, str]] = {}
    """Fields that differ in the other API, with the difference."""
    NATIVE_NAMES: ClassVar[Mapping[str, str]] = {}
    """Names of this API for native fields that errors may name."""

    @classmethod
    def parse(cls, data: dict[str, Any], *, stream: bool = False, rules: Rules = "usual") -> Self:
        """See AnyRequest. `stream` makes an unset field `stream` true; without it, the field decides."""
        if stream and data.get("stream") is None:
            data = {**data, "stream": True}
        request = super().parse(data, rules=rules)
        if stream and not request.streams:
            raise InvalidRequest("stream = False: this call is a stream", param="stream")
        return request

    @property
    def asker(self) -> str | None:
        """User that the client names."""
        return None

    @property
    def streams(self) -> bool:
        """True when the request asks for a streamed answer."""
        return bool(getattr(self, "stream", False))

    def natives(self) -> Sequence[AnyRequest]:
        """Return the native requests that this one stands for; they are made once. Raises InvalidRequest."""
        return self.made_natives

    @cached_property
    def made_natives(self) -> Sequence[AnyRequest]:
        """See `natives`."""
        try:
            return self.make_natives()
        except ValidationError as error:  # a bound that only the native request has
            raise invalid_request(error) from None

    @abstractmethod
    def make_natives(self) -> Sequence[AnyRequest]:
        """Make the native requests."""

    @abstractmethod
    def join(self, answers: Sequence[Answer]) -> Body:
        """Return the answer, joined from the answers to the native requests."""

    def writer(self) -> EventWriter:
        """Return the writer that makes the events of the answer from those of the native streams."""
        raise InvalidRequest("this request has no streamed answer")
