"""The base of all requests, and the error of one that is not valid."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar, Self

from pydantic import Field, PrivateAttr, ValidationError

from run_gpt.api.fields import Intake, Rules, Sifted
from run_gpt.api.values import Fault, Name, field_path, shown
from run_gpt.errors import InvalidRequest

MAX_PATH = 200
"""Most characters of a field's path in an error: a client may choose names in it."""
MAX_ERRORS = 1000
"""Most faults of a request whose first one is named: to name it, a list of all is made."""


class AnyRequest(Sifted):
    """Base of all requests. A field that is unset (None) has the default that its description gives."""

    _ignored: tuple[str, ...] = PrivateAttr(())

    model: Name | None = Field(None, description="The served model's name; another name is a 404.")

    @classmethod
    def parse(cls, data: dict[str, Any], *, stream: bool = False, rules: Rules = "usual") -> Self:
        """Check `data` and build the request. Raises InvalidRequest, which names the field, the limit and the value."""
        intake = Intake(rules)
        try:
            request = cls.model_validate(data, context=intake)
        except ValidationError as error:
            raise invalid_request(error) from None
        request._ignored = intake.ignored
        return request.check_stream() if stream else request

    REPEATS_PARTS: ClassVar[bool] = False
    """True when the last events of its stream repeat what earlier ones had."""

    @property
    def ignored(self) -> tuple[str, ...]:
        """Names of the fields that were taken and had no effect: see HEADER."""
        return self._ignored

    def part_writer(self) -> Callable[[Hashable, Sequence[bytes]], bytes]:
        """Return the writer of the parts of its answer (see api.long_parts)."""
        return lambda sequence, parts: b",".join(parts)

    def check_stream(self) -> Self:
        """Return this request if its answer can be streamed. Raises InvalidRequest otherwise."""
        raise InvalidRequest("this request has no streamed answer")


def invalid_request(error: ValidationError) -> InvalidRequest:
    """Return the first problem of a pydantic error in one line: the field, the fault and the given value."""
    if (count := error.error_count()) > MAX_ERRORS:
        return InvalidRequest(f"the request has {count:,} faults: it is not one of this endpoint")
    first = error.errors(include_url=False)[0]
    error_of_ours = first.get("ctx", {}).get("error")
    if isinstance(error_of_ours, Fault):
        path = field_path((*first["loc"], *error_of_ours.path))[:MAX_PATH]
        return InvalidRequest(f"{path}: {error_of_ours.message}", param=path)
    path = field_path(first["loc"])[:MAX_PATH]
    given = first.get("input")
    if first["type"] == "extra_forbidden":
        return InvalidRequest(f"{path}: this field is not known here", param=path)
    if first["type"] == "missing":
        return InvalidRequest(f"{path}: this field is required", param=path)
    message = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
    return InvalidRequest(f"{path}: {message[:1].lower()}{message[1:]}, got {shown(given)}", param=path or None)
