"""Jina documents: the schemas as typed documents, and the only conversion between the two.

Each document class is derived from its schema, so gRPC and HTTP cannot drift apart. Importing this module imports
docarray, which takes seconds: import it late.
"""

import json
import os
from collections.abc import Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from docarray import BaseDoc
from docarray.proto import DocProto
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, create_model

from run_gpt.api import answers
from run_gpt.api.endpoints import MODEL_ENDPOINTS
from run_gpt.api.fields import Rules, Sifted
from run_gpt.api.long_parts import Filled
from run_gpt.api.request import AnyRequest, invalid_request
from run_gpt.api.values import DOCUMENT
from run_gpt.errors import InternalError, RequestError, error_from_dict

Asked = TypeVar("Asked", bound=AnyRequest)


class _Request(BaseDoc):  # type: ignore[misc]
    """A request's document. Setting an unknown field is an error at once, in the caller."""

    model_config = ConfigDict(extra="forbid")


@cache
def document_class(model: type[BaseModel]) -> type[BaseDoc]:
    """Return the document class of a schema: `Usage` becomes `UsageDocument`, nested models become plain dicts.

    A document holds the values that arrived. Limits stay with the schema, which checks them.
    """
    fields: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        if name != "id":  # each document has an id of its own
            kind = Any if _takes_more(info.metadata) else _plain(info.annotation)
            fields[name] = (kind | None, None)
    if issubclass(model, Sifted):
        for name in model.FIELDS.names:  # otherwise docarray would drop them silently
            fields[name] = (Any, None)
    if issubclass(model, answers.Body):
        fields["error"] = (dict[str, Any] | None, None)
    base = _Request if issubclass(model, AnyRequest) else BaseDoc
    document: type[BaseDoc] = create_model(f"{model.__name__}Document", __base__=base, __module__=__name__, **fields)
    return document


def _plain(annotation: Any) -> Any:
    """Return the builtin type that stands for a schema's annotation in a document."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is NoneType or (origin is Annotated and _takes_more(args[1:])):
        return Any
    if origin in (Union, UnionType):
        kinds = {_plain(arg) for arg in args if arg is not NoneType}
        return kinds.pop() if len(kinds) == 1 else Any
    if origin is Literal:
        return type(args[0])
    if origin is list:
        return list[_plain(args[0])]  # type: ignore[misc]
    if origin is dict:
        return dict[str, Any]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return dict[str, Any]
    return _plain(args[0]) if args else annotation  # Annotated[kind, limits]


def _takes_more(metadata: Sequence[Any]) -> bool:
    """Return True if the schema takes other forms of a value, such as one text for a list of one."""
    return any(isinstance(item, BeforeValidator) for item in metadata)


for _endpoint in MODEL_ENDPOINTS:  # at the start, not in a request: each class takes milliseconds
    for _schema in (_endpoint.request, _endpoint.answer or _endpoint.body(stream=True)):
        document_class(_schema)


def request_to_document(request: AnyRequest) -> BaseDoc:
    """Return the document of a checked request."""
    return document_class(type(request))(**request.model_dump(exclude_none=True, context=DOCUMENT))


def message_to_request(model: type[Asked], message: DocProto, *, stream: bool = False, rules: Rules = "usual") -> Asked:
    """Return the checked request that a document's message carries. Raises InvalidRequest.

    The gRPC endpoint needs this: docarray drops unknown fields when it makes a document of a message.
    """
    cls = document_class(model)
    unknown = dict.fromkeys(name for name in message.data if name not in cls.model_fields)
    try:
        document = cls.from_protobuf(message)
    except ValidationError as error:
        raise invalid_request(error) from None
    return model.parse({**_fields(document), **unknown}, stream=stream, rules=rules)


def document_to_request(model: type[Asked], document: BaseDoc, *, stream: bool = False) -> Asked:
    """Return the checked request that a document carries. Raises InvalidRequest."""
    return model.parse(_fields(document), stream=stream)


def _fields(document: BaseDoc) -> dict[str, Any]:
    return {name: value for name, value in document.model_dump(exclude={"id"}).items() if value is not None}


def answer_to_document(answer: answers.Body) -> BaseDoc:
    """Return the document of an answer or of one event of a stream."""
    return document_class(type(answer))(**answer.model_dump())


def write_answer(answer: answers.Body | Filled, message: DocProto) -> None:
    """Write an answer into the empty message of its document, as docarray does, but in a fifth of the time."""
    kind: Any = type(answer)
    if isinstance(answer, Filled):
        fields, kind = msgspec.json.decode(answer.json), answer.kind
    else:
        fields = answer.model_dump()
    fields.setdefault("id", os.urandom(16).hex())  # each document has an id
    _write_fields(fields, message)
    for name in document_class(kind).model_fields.keys() - fields.keys():
        message.data[name].SetInParent()  # None
    message.data["id"].type = "id"


def _write_fields(fields: dict[str, Any], message: Any) -> None:
    for name, value in fields.items():
        _write_value(value, message.data[name])


def _write_value(value: Any, node: Any) -> None:
    """Write a value into a node; for None the node stays empty."""
    kind = type(value)
    if kind is str:
        node.text = value
    elif kind is bool:
        node.boolean = value
    elif kind is int:
        try:
            node.integer = value
        except ValueError:  # more than 32 bits
            node.float = value
    elif kind is float:
        node.float = value
    elif kind is dict:
        node.dict.SetInParent()
        _write_fields(value, node.dict)
    elif value is not None:
        node.list.SetInParent()
        for item in value:
            _write_value(item, node.list.data.add())


def error_to_document(model: type[answers.Body], error: RequestError) -> BaseDoc:
    """Return the last document of a stream that failed."""
    return document_class(model)(error=error.to_dict())


def document_to_answer(model: type[answers.AnyAnswer], document: BaseDoc) -> answers.AnyAnswer:
    """Return the answer that a document carries, or raise the RequestError that it carries instead.

    Jina gives an empty document back when an Executor fails without an error message: this is an InternalError.
    """
    data = document.model_dump()
    if (error := data.pop("error")) is not None:
        raise error_from_dict(error)
    if data.get("model") is None:
        raise InternalError("the model server gave an empty answer")
    return model.model_validate(data)


class WireError(Exception):
    """Exception by which an Executor raises a RequestError from a unary endpoint.

    Jina passes an exception on to its caller as a list of strings; the first one is the error's JSON.
    """

    def __init__(self, error: RequestError):
        super().__init__(json.dumps(error.to_dict()))
