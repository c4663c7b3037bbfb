"""Jina's gRPC messages for the client, without importing Jina or docarray.

The field numbers are those of jina.proto and docarray.proto. A map is written as a list of entries, its form on the
wire.
"""

from collections.abc import Iterable
from typing import Any
from uuid import uuid4

from run_gpt.api.protobuf import message_classes
from run_gpt.api.request import AnyRequest
from run_gpt.api.values import DOCUMENT, INT32_MAX

UNARY = "/jina.JinaSingleDataRequestRPC/process_single_data"
STREAM = "/jina.JinaSingleDocumentRequestRPC/stream_doc"

_classes = message_classes(
    "rungpt.client",
    {
        "Node": {
            "text": (1, "string"),
            "integer": (2, "int32"),
            "float": (3, "double"),
            "boolean": (4, "bool"),
            "blob": (5, "bytes"),
            "doc": (7, "Doc"),
            "list": (9, "List"),
            "dict": (12, "Doc"),  # DictOfAnyProto is DocProto under another name
        },
        "Entry": {"key": (1, "string"), "value": (2, "Node")},
        "Doc": {"data": (1, "repeated Entry")},
        "List": {"data": (1, "repeated Node")},
        "DocList": {"docs": (1, "repeated Doc")},
        "Header": {"request_id": (1, "string"), "exec_endpoint": (3, "string")},
        "Data": {"docs": (1, "DocList")},
        "DataRequest": {"header": (1, "Header"), "data": (4, "Data")},
        "SingleDocumentRequest": {"header": (1, "Header"), "document": (4, "Doc")},
    },
    unions=("Node",),
)
DataRequest = _classes.DataRequest
SingleDocumentRequest = _classes.SingleDocumentRequest


def unary_message(endpoint: str, request: AnyRequest) -> Any:
    """Return the message that asks `endpoint` for one whole answer."""
    docs = _classes.DocList(docs=[document(request.model_dump(exclude_none=True, context=DOCUMENT))])
    return DataRequest(header=_header(endpoint), data=_classes.Data(docs=docs))


def stream_message(endpoint: str, request: AnyRequest) -> Any:
    """Return the message that asks `endpoint` for a streamed answer."""
    fields = request.model_dump(exclude_none=True, context=DOCUMENT)
    return SingleDocumentRequest(header=_header(endpoint), document=document(fields))


def document(fields: dict[str, Any]) -> Any:
    """Return the document with these fields: texts, numbers, booleans, None, lists and dicts of them."""
    return _classes.Doc(data=_entries(fields))


def fields_of(doc: Any) -> dict[str, Any]:
    """Return the fields of a document, as `document` takes them."""
    return {entry.key: _value(entry.value) for entry in doc.data}


def _header(endpoint: str) -> Any:
    return _classes.Header(request_id=uuid4().hex, exec_endpoint=endpoint)


def _entries(fields: dict[str, Any]) -> Iterable[Any]:
    return [_classes.Entry(key=key, value=_node(value)) for key, value in fields.items()]


def _node(value: Any) -> Any:
    match value:
        case None:
            return _classes.Node()
        case bool():  # before int: a bool is an int, too
            return _classes.Node(boolean=value)
        case int() if abs(value) > INT32_MAX:  # more than a document's integer carries
            return _classes.Node(float=value)
        case int():
            return _classes.Node(integer=value)
        case float():
            return _classes.Node(float=value)
        case str():
            return _classes.Node(text=value)
        case list() | tuple():
            return _classes.Node(list=_classes.List(data=[_node(item) for item in value]))
        case dict():
            return _classes.Node(dict=_classes.Doc(data=_entries(value)))
    raise TypeError(f"a document cannot carry a {type(value).__name__}")


def _value(node: Any) -> Any:
    kind = node.WhichOneof("content")
    if kind is None:
        return None
    content = getattr(node, kind)
    if kind == "list":
        return [_value(item) for item in content.data]
    return fields_of(content) if kind in ("dict", "doc") else content
