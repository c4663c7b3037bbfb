"""Answers the published inference-client 0.0.8 on the gRPC port: its messages hold docarray 0.21's documents.

It calls `/jina.JinaRPC/Call`, as new clients may, with one prompt in each message of the stream. The first message that
holds a document shows which of the two kinds a stream is.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError, Message

from run_gpt.api.answers import Body, GenerateAnswer
from run_gpt.api.protobuf import message_classes
from run_gpt.api.schema import GenerateRequest
from run_gpt.errors import InternalError, InvalidRequest, RequestError
from run_gpt.gateway.record import note_endpoint, note_error

log = logging.getLogger(__name__)

Answerer = Callable[[GenerateRequest], Awaitable[Body]]

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

    def __init__(self, answer: Answerer):
        self._answer = answer

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(details)
        if handler is None or details.method != METHOD:
            return handler

        async def call(messages: AsyncIterator[bytes], context: Any) -> None:
            unreadable = False
            try:
                held, legacy = await _look(messages)
                rest = _chain(held, messages)
                await (self._serve(rest, context) if legacy else _pass_on(handler, rest, context))
            except* DecodeError:
                unreadable = True
            if unreadable:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message cannot be read")

        return grpc.stream_stream_rpc_method_handler(call)

    async def _serve(self, messages: AsyncIterator[bytes], context: Any) -> None:
        """Answer each message, several at a time, in their order: the client matches answers to prompts by order."""
        running: asyncio.Queue[asyncio.Task[bytes | None] | None] = asyncio.Queue(MOST_TOGETHER)

        async def read() -> None:
            async for message in messages:
                await running.put(group.create_task(self._respond(message)))
            await running.put(None)

        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            while (task := await running.get()) is not None:
                if (answer := await task) is None:
                    # Raised here, between two writes: gRPC cannot end a call in the middle of one.
                    raise DecodeError
                await context.write(answer)

    async def _respond(self, message: bytes) -> bytes | None:
        """Return the message as an older Executor would: with the answers in its documents, or with an error.

        None for a message that cannot be read.
        """
        try:
            request = LegacyRequest.FromString(message)
        except DecodeError:
            return None
        try:
            if request.header.exec_endpoint != ENDPOINT:
                raise InvalidRequest(f"{request.header.exec_endpoint!r}: older clients can call {ENDPOINT!r} here")
            note_endpoint(ENDPOINT)
            parameters = parameters_of(request.parameters)
            documents = request.data.docs.docs
            requests = [GenerateRequest.parse({**parameters, "prompt": _prompt(document)}) for document in documents]
            async with asyncio.TaskGroup() as group:
                answers = [group.create_task(self._text(one)) for one in requests]
            for document, answer in zip(documents, answers, strict=True):
                document.tags["generated_text"] = answer.result()
        except* RequestError as errors:
            _set_error(request, _first(errors))
        except* Exception as errors:
            log.error("an older client's request failed", exc_info=errors)
            _set_error(request, InternalError("the request failed: the server's log says why"))
        return request.SerializeToString()  # type: ignore[no-any-return]

    async def _text(self, request: GenerateRequest) -> str:
        return cast("GenerateAnswer", await self._answer(request)).text


def is_legacy(message: bytes) -> bool | None:
    """Return True when the message holds older documents; None if it holds no document.

    Both kinds of documents have a field 1. In an older one it is the id, a text. In a new one it is the only field:
    entries of a map, and the first byte of an entry is the tag of its key (0x0a), or, if a writer swaps them, of
    its value (0x12). An id begins with neither, because both are control characters.
    """
    try:
        documents = LegacyRequest.FromString(message).data.docs.docs
    except DecodeError:
        return False  # the normal path refuses what cannot be read
    if not documents:
        return None
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


async def _look(messages: AsyncIterator[bytes]) -> tuple[list[bytes], bool]:
    """Return the messages up to the first one that holds a document, and True if that is an older document."""
    held = []
    async for message in messages:
        held.append(message)
        if (legacy := is_legacy(message)) is not None:
            return held, legacy
    return held, False


async def _chain(held: list[bytes], messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for message in held:
        yield message
    async for message in messages:
        yield message


async def _pass_on(handler: Any, messages: AsyncIterator[bytes], context: Any) -> None:
    """Handle the call as if this interceptor were absent."""

    async def requests() -> AsyncIterator[Any]:
        async for message in messages:
            yield handler.request_deserializer(message)

    async for response in handler.stream_stream(requests(), context):
        await context.write(handler.response_serializer(response))
