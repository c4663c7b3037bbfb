"""Requests made of the OpenAPI document: none is a 500, and each answer is one that the document describes.

Clients are generated from the document: an answer that it does not have is an exception in a user's program.
"""

import json
from typing import Any

import httpx
import jsonschema
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from run_gpt.gateway.openapi import describe

DOCUMENT = describe("1")
OPERATIONS = [f"{method.upper()} {path}" for path, methods in DOCUMENT["paths"].items() for method in methods]
CASES = 10
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
]
BOUNDED = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def description(stack: Any) -> Any:
    return schemathesis.openapi.from_url(f"{stack.http}/openapi.json")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_answer_is_in_the_document(stack: Any, description: Any, operation: str) -> None:
    """The scripted executor answers every prompt, so a 500 or a 503 is the gateway's."""

    method, path = operation.split()
    modes = list(GenerationMode) if method == "POST" else [GenerationMode.POSITIVE]

    @BOUNDED
    @given(case=st.one_of(description[path][method].as_strategy(mode) for mode in modes))
    def check(case: Any) -> None:
        response = send(case)
        assert response.status_code < 500
        if response.headers["content-type"].startswith("text/event-stream"):
            case.validate_response(response, checks=CHECKS)
            check_events(path, response.text)
        else:
            case.validate_response(response, checks=[*CHECKS, response_schema_conformance])

    check()
    assert httpx.get(f"{stack.http}/ready").json()["in_flight"] == 0
    assert "Traceback" not in stack.log_of("gateway")


def send(case: Any) -> httpx.Response:
    """Send a case. Its own `call` reads streams by a method that Jina's urllib3 does not have."""
    prepared = requests.Request(**case.as_transport_kwargs()).prepare()
    return httpx.request(prepared.method, prepared.url, content=prepared.body, headers=dict(prepared.headers))


def check_events(path: str, text: str) -> None:
    """Check each event of a stream by the schema that the document has for it."""
    content = DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]
    schemas = {"message": content["text/event-stream"]["schema"], "error": {"$ref": "#/components/schemas/Error"}}
    for block in text.strip().split("\n\n"):
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        fields = dict(line.split(": ", 1) for line in lines)
        if not fields or fields["data"] == "[DONE]":
            continue
        schema = schemas.get(fields.get("event", "message"), schemas["message"])
        jsonschema.Draft202012Validator({**DOCUMENT, **schema}).validate(json.loads(fields["data"]))
