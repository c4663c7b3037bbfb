"""Every error RunGPT raises, in one tree. The wire's error table (HTTP status, gRPC code) is only here.

RunGPTError
├── RequestError                an answer to one request; crosses the wire and comes back as the same class
│   ├── InvalidRequest          400 INVALID_ARGUMENT
│   │   └── ContextLengthExceeded
│   ├── AuthenticationError     401 UNAUTHENTICATED
│   ├── Forbidden               403 PERMISSION_DENIED
│   ├── ModelNotFound           404 NOT_FOUND
│   ├── UnknownEndpoint         404 NOT_FOUND
│   ├── MethodNotAllowed        405 UNIMPLEMENTED
│   ├── RequestTooLarge         413 RESOURCE_EXHAUSTED
│   ├── UnsupportedEncoding     415 INVALID_ARGUMENT
│   ├── QueueFull               429 RESOURCE_EXHAUSTED
│   ├── RateLimited             429 RESOURCE_EXHAUSTED
│   ├── InternalError           500 INTERNAL
│   ├── Unavailable             503 UNAVAILABLE
│   └── DeadlineExceeded        504 DEADLINE_EXCEEDED
└── SetupError                  a model or a server that cannot start; one line that says what to do
    ├── ModelLoadError
    │   └── ChecksumMismatch
    ├── DownloadError
    └── PortInUse
"""

import math
from typing import Any, ClassVar


class RunGPTError(Exception):
    """Base of all errors of this package. `message` is one line for people."""

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message


class RequestError(RunGPTError):
    """The error answer to one request, in OpenAI's shape on the wire.

    `param` is the name of the wrong field, if there is one. `request_id` is the server's name for the request, by which
    its operator can find it in the log; None if no server gave a name.
    """

    http_status: ClassVar[int] = 500
    grpc_code: ClassVar[str] = "INTERNAL"
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None):
        super().__init__(message)
        self.param = param
        self.request_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the value of `error` on the wire: message, type, param, code."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}


class InvalidRequest(RequestError):
    """A malformed or unsupported field; `param` names it."""

    http_status, grpc_code = 400, "INVALID_ARGUMENT"
    type, code = "invalid_request_error", "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    """The prompt does not fit the model's context; the message gives both numbers."""

    code = "context_length_exceeded"


class AuthenticationError(RequestError):
    """The key is missing or wrong."""

    http_status, grpc_code = 401, "UNAUTHENTICATED"
    type, code = "authentication_error", "invalid_api_key"


class Forbidden(RequestError):
    """The server was started without the option that allows this, or the key has not the role; the message says so."""

    http_status, grpc_code = 403, "PERMISSION_DENIED"
    type, code = "invalid_request_error", "forbidden"


class ModelNotFound(RequestError):
    """There is no such model or adapter on this server, in the catalogue, on the hub or on disk."""

    http_status, grpc_code = 404, "NOT_FOUND"
    type, code = "invalid_request_error", "model_not_found"


class UnknownEndpoint(RequestError):
    """There is no such route or endpoint; the message names those that exist."""

    http_status, grpc_code = 404, "NOT_FOUND"
    type, code = "invalid_request_error", "unknown_endpoint"


class MethodNotAllowed(RequestError):
    """The route exists, but with another HTTP method."""

    http_status, grpc_code = 405, "UNIMPLEMENTED"
    type, code = "invalid_request_error", "method_not_allowed"


class RequestTooLarge(RequestError):
    """The body exceeds the limit; the message gives both sizes."""

    http_status, grpc_code = 413, "RESOURCE_EXHAUSTED"
    type, code = "invalid_request_error", "request_too_large"


class UnsupportedEncoding(RequestError):
    """The body has a coding that is not taken: send it with gzip or deflate, or as it is."""

    http_status, grpc_code = 415, "INVALID_ARGUMENT"
    type, code = "invalid_request_error", "unsupported_encoding"


class QueueFull(RequestError):
    """The queue is full: try again after `retry_after` seconds."""

    http_status, grpc_code = 429, "RESOURCE_EXHAUSTED"
    type, code = "rate_limit_error", "queue_full"
    retry_after: int = 1

    def __init__(self, message: str, *, param: str | None = None, retry_after: int = retry_after):
        super().__init__(message, param=param)
        self.retry_after = retry_after

    @staticmethod
    def seconds(estimate: float) -> int:
        """Return an estimated wait as whole seconds, 1 to 60."""
        return max(1, min(60, math.ceil(estimate)))


class RateLimited(RequestError):
    """The key has reached one of its limits, which the message names: try again after `retry_after` seconds."""

    http_status, grpc_code = 429, "RESOURCE_EXHAUSTED"
    type, code = "rate_limit_error", "rate_limit_exceeded"

    def __init__(self, message: str, *, param: str | None = None, retry_after: int = 1):
        super().__init__(message, param=param)
        self.retry_after = retry_after


class InternalError(RequestError):
    """The server failed while this request ran; it goes on serving other requests."""


class Unavailable(RequestError):
    """The model is loading, draining or dead, or no replica answers."""

    http_status, grpc_code = 503, "UNAVAILABLE"
    type, code = "server_error", "unavailable"


class DeadlineExceeded(RequestError):
    """The request's time ran out before its answer was complete."""

    http_status, grpc_code = 504, "DEADLINE_EXCEEDED"
    type, code = "timeout_error", "deadline_exceeded"


class SetupError(RunGPTError):
    """A model or a server cannot start."""


class ModelLoadError(SetupError):
    """A model's files are missing, unreadable or of a kind that is not supported."""


class ChecksumMismatch(ModelLoadError):
    """A file differs from the one that was published."""


class DownloadError(SetupError):
    """A download failed: no network, no such file, no space."""


class PortInUse(SetupError):
    """Another program listens on a port that the server needs."""


_BY_CODE: dict[str, type[RequestError]] = {
    cls.code: cls
    for cls in (
        InvalidRequest,
        ContextLengthExceeded,
        AuthenticationError,
        Forbidden,
        ModelNotFound,
        UnknownEndpoint,
        MethodNotAllowed,
        RequestTooLarge,
        UnsupportedEncoding,
        QueueFull,
        RateLimited,
        InternalError,
        Unavailable,
        DeadlineExceeded,
    )
}

ERROR_CODES = tuple(_BY_CODE)
"""Every `code` that an error on the wire may have."""


def error_from_dict(error: dict[str, Any]) -> RequestError:
    """Return the exception that `RequestError.to_dict` wrote; an unknown `code` becomes an InternalError."""
    cls = _BY_CODE.get(str(error.get("code")), InternalError)
    made = cls(str(error.get("message") or "the server gave no message"), param=error.get("param"))
    if isinstance(made, QueueFull) and str(error.get("retry_after")).isdecimal():
        made.retry_after = int(error["retry_after"])
    return made
