"""Errors in the form of Anthropic's API."""

from typing import Any

from run_gpt.errors import RequestError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_body(error: RequestError) -> dict[str, Any]:
    """Return the body of an error's answer, which is also the data of a stream's error event."""
    kind = _TYPES.get(error.http_status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}
