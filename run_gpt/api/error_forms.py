"""Bodies of errors over HTTP, in the form of each API; a path says whose form it is."""

from collections.abc import Callable
from typing import Any

from run_gpt.errors import RequestError

ErrorForm = Callable[[RequestError], dict[str, Any]]
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def openai_error(error: RequestError) -> dict[str, Any]:
    """Return the body in OpenAI's form, which is also that of all native endpoints."""
    return {"error": error.to_dict()}


def anthropic_error(error: RequestError) -> dict[str, Any]:
    """Return the body in Anthropic's form."""
    kind = _ANTHROPIC_TYPES.get(error.http_status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def ollama_error(error: RequestError) -> dict[str, Any]:
    """Return the body in Ollama's form."""
    return {"error": error.message}


_FORMS: tuple[tuple[str, ErrorForm], ...] = (("/api/", ollama_error), ("/v1/messages", anthropic_error))
"""Forms by the beginnings of paths, those that are no endpoint included."""


def error_form(path: str) -> ErrorForm:
    """Return the function that makes the body of an error's answer on this path."""
    return next((form for begin, form in _FORMS if path.startswith(begin)), openai_error)


def error_body(path: str, error: RequestError) -> dict[str, Any]:
    """Return the body of an error's answer on this path, which is also the data of a stream's error event."""
    return error_form(path)(error)
