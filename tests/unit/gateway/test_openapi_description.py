"""The OpenAPI description: without these tests generators of clients could fail, or get a wrong description."""

import re
from typing import Any

import jsonschema
import pytest

from run_gpt.api.endpoints import ENDPOINTS
from run_gpt.gateway.openapi import describe, page

DOCUMENT = describe("1")
METHODS = [
    (path, method, operation) for path, methods in DOCUMENT["paths"].items() for method, operation in methods.items()
]
FUNCTION = {"name": "f", "parameters": {"type": "object"}}
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
PARTS = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}

PROBED = ("/health", "/ready", "/version")


def validator(name: str) -> jsonschema.Draft202012Validator:
    """Return the validator of a schema of the description, whose references resolve in it."""
    return jsonschema.Draft202012Validator({**DOCUMENT, "$ref": f"#/components/schemas/{name}"})


def test_it_is_an_openapi_document() -> None:
    assert re.fullmatch(r"3\.1\.\d", DOCUMENT["openapi"])
    assert set(DOCUMENT["info"]) >= {"title", "version"}
    assert {path for path, *_ in METHODS} == {*ENDPOINTS, *PROBED, "/metrics"}
    names = [operation["operationId"] for *_, operation in METHODS if "operationId" in operation]
    assert len(names) == len(set(names))
    for path, method, operation in METHODS:
        assert method in {"get", "post"}
        assert operation["summary"]
        assert all(response["description"] for response in operation["responses"].values())
        given = [p for p in operation.get("parameters", ()) if "$ref" not in p]
        declared = {(p["name"], p["in"], p["required"]) for p in given}
        assert declared == {(name, "path", True) for name in re.findall(r"\{(\w+)\}", path)}
        assert ("requestBody" in operation) == (method == "post")


def test_a_request_may_be_named_and_every_answer_says_how_it_is_called() -> None:
    """A generated client could otherwise neither send nor read the request id."""
    sent, told = "#/components/parameters/RequestId", "#/components/headers/RequestId"
    for path, _, operation in METHODS:
        names = [p["$ref"] for p in operation.get("parameters", ()) if "$ref" in p]
        headers = [dict(answer.get("headers", {})) for answer in operation["responses"].values()]
        ignored = headers[0].pop("X-RunGPT-Ignored", None)
        assert ignored == ({"$ref": "#/components/headers/Ignored"} if "requestBody" in operation else None)
        probed = path in PROBED
        assert names == ([] if probed else [sent])
        assert all(header == ({} if probed else {"X-Request-Id": {"$ref": told}}) for header in headers)
    parameter, header = (DOCUMENT["components"][kind]["RequestId"] for kind in ("parameters", "headers"))
    assert (parameter["name"], parameter["in"], parameter.get("required")) == ("X-Request-Id", "header", None)
    for schema in (parameter["schema"], header["schema"]):
        jsonschema.validate("my/id=1~", schema)
        for wrong in ("", "two words", "x" * 129):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(wrong, schema)
    assert "<code>X-Request-Id</code>" in page(DOCUMENT)


@pytest.mark.parametrize("name", DOCUMENT["components"]["schemas"])
def test_every_schema_is_a_json_schema_in_which_references_lead_somewhere(name: str) -> None:
    schemas = DOCUMENT["components"]["schemas"]
    jsonschema.Draft202012Validator.check_schema(schemas[name])
    assert set(re.findall(r"'#/components/schemas/(\w+)'", str(schemas[name]))) <= set(schemas)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
def test_what_may_be_streamed_has_both_media_types(path: str) -> None:
    content = DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]
    assert set(content) == {"application/json", "text/event-stream"}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("GenerateRequest", {"prompt": [1, 2], "stop": "x", "n": 2}),
        ("ChatRequest", {**PARTS, "tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "auto"}),
        ("CompletionRequest", {"prompt": [[1, 2], [3]], "stop": ["x"]}),
        ("CompletionRequest", {"prompt": ["a", "b"], "logit_bias": {"5": -100}}),
        ("ChatCompletionRequest", {**CHAT, "response_format": {"type": "regex", "regex": "a"}}),
        ("ChatCompletionRequest", {**PARTS, "tools": [{"type": "function", "function": FUNCTION}]}),
        ("ResponseRequest", {"input": "hi", "tools": [{"type": "function", **FUNCTION}]}),
        ("ResponseRequest", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]}),
        ("EmbeddingRequest", {"input": "hi", "encoding_format": "base64"}),
        ("TokenizeRequest", PARTS),
    ],
)
def test_what_the_server_takes_is_valid_by_its_description(name: str, fields: dict[str, Any]) -> None:
    """A strict client refuses requests that the description does not allow."""
    requests = {endpoint.request.__name__: endpoint.request for endpoint in ENDPOINTS.values()}
    requests[name].parse(fields)
    validator(name).validate(fields)
    with pytest.raises(jsonschema.ValidationError):
        validator(name).validate({**fields, "nonsense": 1})


def test_it_says_what_differs_from_openais_and_what_is_refused() -> None:
    post = DOCUMENT["paths"]["/v1/embeddings"]["post"]
    assert "dimensions" in post["description"]
    fields = DOCUMENT["components"]["schemas"]["CompletionRequest"]["properties"]
    assert "OpenAI's: up to 5." in fields["logprobs"]["description"]


def test_the_page_lists_every_route_and_every_field() -> None:
    text = page(DOCUMENT)
    for path, method, operation in METHODS:
        assert f"<code>{method.upper()} {path}</code>" in text
        if "requestBody" in operation:
            name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            assert all(
                f"<code>{field}</code>" in text for field in DOCUMENT["components"]["schemas"][name]["properties"]
            )
