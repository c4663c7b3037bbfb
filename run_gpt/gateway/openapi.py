"""The OpenAPI description of the HTTP port, from the schemas, and a page that shows it without outside resources."""

import re
from html import escape
from typing import Any

from pydantic.json_schema import models_json_schema

from run_gpt.api import fields
from run_gpt.api.endpoints import ENDPOINTS, Endpoint
from run_gpt.api.error_forms import anthropic_error, ollama_error
from run_gpt.api.schema import SYNONYMS, Parameters
from run_gpt.api.translated import TranslatedRequest
from run_gpt.process import request_ids

_REF = "#/components/schemas/"
_ERRORS = {
    400: "A malformed or unsupported field, or a prompt that is too long",
    401: "The key is missing or wrong, on a server that asks for one",
    403: "The server was started without the option that allows this",
    404: "No such model or adapter",
    408: "The request did not come in time",
    413: "The body is too large",
    415: "The body has another coding than gzip and deflate",
    429: "The queue is full, or bodies take too much memory; see the Retry-After header",
    500: "Something broke while the request ran",
    503: "The model is loading, cannot be loaded or is in use, the server is draining, or no replica answers",
    504: "The deadline passed",
}
# `{}`: without a key, where the server needs none.
_SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"key": []}, {"password": []}, {}]
_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY`"},
    "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "The key as it is."},
    "password": {"type": "http", "scheme": "basic", "description": "For browsers: the key is the password."},
}
_NAME_SCHEMA = {"type": "string", "pattern": "^[!-~]{1,128}$"}
_HEADERS = {
    "parameters": {
        "RequestId": {
            "name": request_ids.HEADER,
            "in": "header",
            "description": "A name for the request: it comes back, and stands in the server's log.",
            "schema": _NAME_SCHEMA,
        }
    },
    "headers": {
        "RequestId": {
            "description": "What the request is called in the server's log: as the client named it, else its id.",
            "schema": _NAME_SCHEMA,
        },
        "Ignored": {
            "description": "Names of the request's fields that were taken and had no effect, if there are any.",
            "schema": {"type": "string"},
        },
    },
}
_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}


_MESSAGES_ERROR_SCHEMA = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}


_OLLAMA_ERROR_SCHEMA = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}


def describe(version: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    health = {
        "get": {
            "summary": "Whether the server lives; needs no key",
            "security": [],
            "responses": {"200": {"description": "It does"}},
        }
    }
    ready = {
        "get": {
            "summary": "Whether a request would be served now; needs no key. With one also the state of each replica",
            "security": [],
            "responses": {"200": {"description": "It would"}, "503": {"description": "It would not"}},
        }
    }
    ours = {
        "get": {
            "summary": "Version of this server, and of its API; needs no key",
            "security": [],
            "responses": {"200": {"description": "`name`, `version` and `api`"}},
        }
    }
    text = {"description": "Prometheus' text form", "content": {"text/plain": {"schema": {"type": "string"}}}}
    metrics = {"get": {"summary": "What is counted and measured, of all replicas", "responses": {"200": text}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "RunGPT", "version": version},
        "paths": {
            **{e.path: _named(_methods(e)) for e in ENDPOINTS.values()},
            "/health": health,
            "/ready": ready,
            "/version": ours,
            "/metrics": _named(metrics),
        },
        "security": _SECURITY,
        "components": {
            "schemas": {
                **_schemas(),
                "Error": _ERROR_SCHEMA,
                "MessagesError": _MESSAGES_ERROR_SCHEMA,
                "OllamaError": _OLLAMA_ERROR_SCHEMA,
            },
            "securitySchemes": _SECURITY_SCHEMES,
            **_HEADERS,
        },
    }


def _named(methods: dict[str, Any]) -> dict[str, Any]:
    """Return the operations with a request id: optional in requests, always in answers."""
    parameter, header = ({"$ref": f"#/components/{kind}/RequestId"} for kind in ("parameters", "headers"))
    ignored = {"$ref": "#/components/headers/Ignored"}

    def named(operation: dict[str, Any]) -> dict[str, Any]:
        answers = {
            status: {**answer, "headers": {request_ids.HEADER: header}}
            for status, answer in operation["responses"].items()
        }
        if "requestBody" in operation:
            answers["200"]["headers"][fields.HEADER] = ignored
        return {**operation, "parameters": [*operation.get("parameters", []), parameter], "responses": answers}

    return {method: named(operation) for method, operation in methods.items()}


def _methods(endpoint: Endpoint) -> dict[str, Any]:
    post = _operation(endpoint)
    if not endpoint.get:
        return {"post": post}
    get = {name: value for name, value in post.items() if name != "requestBody"}
    names = re.findall(r"\{(\w+)\}", endpoint.path)
    if names:
        schema = {"type": "string"}
        return {
            "get": {
                **get,
                "parameters": [{"name": name, "in": "path", "required": True, "schema": schema} for name in names],
            }
        }
    return {"get": {**get, "operationId": f"get_{get['operationId']}"}, "post": post}


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if endpoint.answer is not None:
        content["application/json"] = {"schema": {"$ref": _REF + endpoint.answer.__name__}}
    if endpoint.event is not None:
        content[endpoint.form.content_type.partition(";")[0]] = {
            "schema": {"anyOf": _events(endpoint, endpoint.event.__name__)}
        }
    about = "Events: the data of each; an error is an `error` event, the last one" if endpoint.event else "The answer"
    responses: dict[str, Any] = {"200": {"description": about, "content": content}}
    for status, description in _ERRORS.items():
        error = {"application/json": {"schema": {"$ref": _REF + _error_of(endpoint)}}}
        responses[str(status)] = {"description": description, "content": error}
    refused = endpoint.request.FIELDS.refused
    note = {"description": f"Refused, since they are not supported here: {', '.join(refused)}."} if refused else {}
    return {
        "summary": endpoint.summary,
        **note,
        "operationId": re.sub(r"\W+", "_", endpoint.path.strip("/{}")),
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": _REF + endpoint.request.__name__}}},
        },
        "responses": responses,
    }


def _events(endpoint: Endpoint, name: str) -> list[dict[str, Any]]:
    """Return the schemas of the data of an event: one of the answer, an error, the line after the last one."""
    last: list[dict[str, Any]] = [] if endpoint.last_line is None else [{"const": endpoint.last_line}]
    return [{"$ref": _REF + name}, {"$ref": _REF + _error_of(endpoint)}, *last]


def _error_of(endpoint: Endpoint) -> str:
    names: dict[Any, str] = {anthropic_error: "MessagesError", ollama_error: "OllamaError"}
    return names.get(endpoint.error, "Error")


def _schemas() -> dict[str, Any]:
    """Return the schemas of requests (with synonyms, which a strict reader would refuse otherwise) and answers."""
    requests = {e.request for e in ENDPOINTS.values()}
    answers = {kind for e in ENDPOINTS.values() for kind in (e.answer, e.event) if kind is not None}
    models: list[Any] = [(m, "validation") for m in sorted(requests, key=lambda m: m.__name__)]
    models += [(m, "serialization") for m in sorted(answers, key=lambda m: m.__name__)]
    schemas: dict[str, Any] = models_json_schema(models, ref_template=_REF + "{model}")[1]["$defs"]
    for request in (r for r in requests if issubclass(r, Parameters)):
        properties = schemas[request.__name__]["properties"]
        for synonym, name in SYNONYMS.items():
            if name in properties:
                properties[synonym] = {**properties[name], "description": f"The same as `{name}`."}
    for translated in (r for r in requests if issubclass(r, TranslatedRequest)):
        for name, differs in translated.DIFFERS.items():
            field = schemas[translated.__name__]["properties"][name]
            field["description"] = f"{field['description']} {differs}"
    return schemas


def page(document: dict[str, Any]) -> str:
    """Return the document as one plain HTML page: each route, and the fields of its request."""
    parts = [f"<h1>{escape(document['info']['title'])} {escape(document['info']['version'])}</h1>"]
    parts.append('<p>The machine-readable form is <a href="openapi.json">openapi.json</a>.</p>')
    header = document["components"]["parameters"]["RequestId"]
    parts.append(f"<p>The header <code>{header['name']}</code>: {escape(header['description'])}</p>")
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>")
            parts.append(f"<p>{escape(operation.get('description', ''))}</p>")
            if "requestBody" in operation:
                ref = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
                parts.append(_table(document["components"]["schemas"][ref.removeprefix(_REF)]))
            responses = [
                f"<li>{status}: {escape(r['description'])}</li>" for status, r in operation["responses"].items()
            ]
            parts.append(f"<ul>{''.join(responses)}</ul>")
    style = "body{font:16px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}td{padding:.2em 1em .2em 0}"
    head = f'<meta charset="utf-8"><title>RunGPT</title><style>{style}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'


def _table(schema: dict[str, Any]) -> str:
    rows = []
    for name, field in schema["properties"].items():
        required = " (required)" if name in schema.get("required", ()) else ""
        text = escape(field.get("description", ""))
        rows.append(f"<tr><td><code>{escape(name)}</code>{required}</td><td>{_kind(field)}</td><td>{text}</td></tr>")
    return f"<table>{''.join(rows)}</table>"


def _kind(field: dict[str, Any]) -> str:
    kinds = [part.get("type", "object") for part in field.get("anyOf", [field])]
    return escape(" or ".join(str(kind) for kind in kinds if kind != "null"))
