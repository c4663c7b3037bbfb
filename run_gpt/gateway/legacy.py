"""Answers the published inference-client 0.0.8 on the gRPC port: its messages hold docarray 0.21's documents.

It calls `/jina.JinaRPC/Call`, as new clients may, with one prompt in each message of the stream. The first message
shows which of the two kinds a stream is.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, cast

import grpc
from google.protobuf.message import Message

from run_gpt.api.answers import Body, GenerateAnswer
from run_gpt.api.long_parts import Filled
from run_gpt.api.protobuf import message_classes
from run_gpt.api.schema import GenerateRequest
from run_gpt.api.together import in_order
from run_gpt.config import GatewayConfig
from run_gpt.errors import InternalError, InvalidRequest, RequestError
from run_gpt.gateway.grpc_messages import MOST_ON_LOOP, check_documents, handled, is_long, parse
from run_gpt.gateway.record import note_endpoint, note_error
from run_gpt.gateway.rpc import abort

log = logging.getLogger(__name__)

Answerer = Callable[[GenerateRequest], Awaitable[Body | Filled]]

METHOD = "/jina.JinaRPC/Call"
ENDPOINT = "/generate"
ERROR = 1  # StatusProto.StatusCode
MOST_TOGETHER = 64
"""Number of prompts of one stream that are answered at the same time."""

_classes = message_classes(
    "rungpt.legacy",
    {
        "Exception": {"name": (1, "string"), "args": (2, "repeated string")},
        "Status": {"code": (1, "uint32"), "description": (2, "string"), "exception": (3, "Exception")},
        "Header": {"status": (2, "Status"), "exec_endpoint": (3, "string")},
        "Document": {"id": (1, "bytes"), "text": (4, "string"), "tags": (17, "Struct")},  # a new one has bytes in 1
        "Documents": {"docs": (1, "repeated Document")},
        "Data": {"docs": (1, "Documents")},
        "Request": {"header": (1, "Header"), "parameters": (2, "Struct"), "data": (4, "Data")},
    },
)
LegacyRequest = _classes.Request


class LegacyInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Interceptor that answers older clients' `/generate` by `answer`, which raises RequestErrors; passes on others."""

    def __init__(self, answer: Answerer, most_bytes: int = GatewayConfig.max_body_bytes):
        self._answer = answer
        self._most_bytes = most_bytes

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(details)
        if handler is None or details.method != METHOD:
            return handler

        async def call(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            try:
                if (first := await anext(messages, None)) is None:
                    return
                legacy = await handled(lambda: is_legacy(first), long=is_long(first))
                answers: Any = self._serve if legacy else handler.stream_stream
                async with aclosing(answers(_chain(first, messages), context)) as answered:
                    async for answer in answered:
                        yield answer
            except RequestError as error:
                await abort(context, error)

        return grpc.stream_stream_rpc_method_handler(call)

    def _serve(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answer each message, several at a time, in their order: the client matches answers to prompts by order."""
        return in_order(self._respond, messages, MOST_TOGETHER, 2 * self._most_bytes)

    async def _respond(self, message: bytes) -> bytes:
        """Return the message as an older Executor would: with the answers in its documents, or with an error.

        Raises InvalidRequest for a message that cannot be parsed.
        """
        long = is_long(message)
        request = await handled(lambda: parse(LegacyRequest, message), long=long)
        try:
            requests = await handled(
                lambda: _requests(request), long=long or len(request.data.docs.docs) > MOST_ON_LOOP
            )
            async with asyncio.TaskGroup() as group:
                answers = [group.create_task(self._text(one)) for one in requests]
            for document, answer in zip(request.data.docs.docs, answers, strict=True):
                document.tags["generated_text"] = answer.result()
        except* RequestError as errors:
            _set_error(request, _first(errors))
        except* Exception as errors:
            log.error("an older client's request failed", exc_info=errors)
            _set_error(request, InternalError("the request failed: the server's log says why"))
        return request.SerializeToString()  # type: ignore[no-any-return]

    async def _text(self, request: GenerateRequest) -> str:
        answer = await self._answer(request)
        return cast("GenerateAnswer", answer.read() if isinstance(answer, Filled) else answer).text


def _requests(message: Any) -> list[GenerateRequest]:
    """Return the checked requests of an older message. Raises InvalidRequest."""
    if (endpoint := message.header.exec_endpoint) != ENDPOINT:
        raise InvalidRequest(f"{endpoint!r}: older clients can call {ENDPOINT!r} here")
    note_endpoint(ENDPOINT)
    documents = message.data.docs.docs
    check_documents(len(documents))
    parameters = parameters_of(message.parameters)
    parameters.pop("logprobs", None)  # these clients get texts only
    return [GenerateRequest.parse({**parameters, "prompt": _prompt(document)}) for document in documents]


def is_legacy(message: bytes) -> bool:
    """Return True when the message holds older documents.

    Both kinds of documents have a field 1. In an older one it is the id, a text. In a new one it is the only field:
    entries of a map, and the first byte of an entry is the tag of its key (0x0a), or, if a writer swaps them, of
    its value (0x12). An id begins with neither, because both are control characters.
    """
    try:
        documents = parse(LegacyRequest, message).data.docs.docs
    except InvalidRequest:
        return False  # the normal path refuses what cannot be read
    if not documents:
        return False
    document = documents[0]
    return bool(document.text or document.HasField("tags") or document.id[:1] not in (b"", b"\x0a", b"\x12"))


def parameters_of(parameters: Any) -> dict[str, Any]:
    """Return the parameters (a Struct) as our schema takes them.

    A Struct has no integers, so a whole number becomes one again. The older client's documented default
    `length_penalty = 1.0` comes with greedy search too, where it has no effect and our schema forbids it.
    """
    fields = {name: _plain(value) for name, value in parameters.items()}
    if fields.get("length_penalty") == 1 and fields.get("num_beams", 1) == 1:
        del fields["length_penalty"]
    return fields


def _plain(value: Any) -> Any:
    kind = value.DESCRIPTOR.name if isinstance(value, Message) else ""  # our pool has a Struct class of its own
    if kind == "Struct":
        return {name: _plain(item) for name, item in value.items()}
    if kind == "ListValue":
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _prompt(document: Any) -> Any:
    tags = document.tags
    return _plain(tags["prompt"]) if "prompt" in tags else document.text


def _set_error(request: Any, error: RequestError) -> None:
    """Set the status that makes the older client raise BadServer with this text."""
    note_error(error)
    status = request.header.status
    status.code, status.description = ERROR, error.message
    status.exception.name = type(error).__name__
    status.exception.args[:] = [error.message]


def _first(errors: BaseExceptionGroup[Any]) -> Any:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _chain(first: bytes, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for message in messages:
        yield message
