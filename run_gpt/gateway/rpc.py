"""The gRPC port: Jina's services, answered by the same service as the HTTP port.

Messages are Jina's; an error is a gRPC status with the error's message, and the whole error as JSON in the trailing
metadata `rungpt-error`. A stream that has begun ends with a document that carries the error.
"""

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from functools import partial
from importlib.metadata import version
from typing import Any, NoReturn, cast

import grpc
from google.protobuf import json_format
from jina.proto import jina_pb2

from run_gpt.api import documents
from run_gpt.api.answers import Body
from run_gpt.api.endpoints import ENDPOINTS, Endpoint
from run_gpt.api.fields import METADATA, MOST_NAMES, Rules
from run_gpt.api.long_parts import Filled
from run_gpt.api.schema import Parameters
from run_gpt.api.together import Turns, in_order, together
from run_gpt.errors import InternalError, InvalidRequest, QueueFull, RateLimited, RequestError, UnknownEndpoint
from run_gpt.gateway.grpc_messages import MOST_ON_LOOP, check_documents, handled, is_long, parse
from run_gpt.gateway.record import note_endpoint, note_error
from run_gpt.gateway.service import Service

log = logging.getLogger(__name__)

ERROR_METADATA = "rungpt-error"
MOST_TEXT = 500
"""Most characters of an error's message that are sent: metadata has 8 KiB, and a field's name may be long."""
MOST_HEADER_BYTES = 8192
"""Most bytes of a message's header, which every answer repeats."""
REQUESTS_AT_ONCE = 16
"""Number of messages of one `Call` that are answered together; their answers come in order."""


class Servicer:
    """Jina's gRPC services over `service`. `context` is a grpc.aio.ServicerContext."""

    def __init__(self, service: Service):
        self.service = service

    def handlers(self) -> list[Any]:
        """Return the handlers of all services, for `grpc.aio.Server.add_generic_rpc_handlers`. They use bytes."""

        def unary(method: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(method, _raw, _raw)

        streaming, both = grpc.unary_stream_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        table = {
            "jina.JinaRPC": {"Call": both(self.call, _raw, _raw)},
            "jina.JinaSingleDataRequestRPC": {"process_single_data": unary(self.process_single_data)},
            "jina.JinaSingleDocumentRequestRPC": {"stream_doc": streaming(self.stream_doc, _raw, _raw)},
            "jina.JinaGatewayDryRunRPC": {"dry_run": unary(self.dry_run)},
            "jina.JinaInfoRPC": {"_status": unary(self.info)},
            "jina.JinaDiscoverEndpointsRPC": {"endpoint_discovery": unary(self.endpoint_discovery)},
        }
        return [grpc.method_handlers_generic_handler(name, methods) for name, methods in table.items()]

    async def call(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answer DataRequests in order; the first that fails ends the call."""

        def answer(message: bytes) -> Awaitable[bytes]:
            return self._data(message, context)

        most_bytes = 2 * self.service.config.max_body_bytes
        async with aclosing(cast("Any", in_order(answer, messages, REQUESTS_AT_ONCE, most_bytes))) as answers:
            try:
                async for answered in answers:
                    yield answered
            except Exception as error:
                await abort(context, error)

    async def process_single_data(self, message: bytes, context: Any) -> bytes:
        """Answer one DataRequest."""
        try:
            return await self._data(message, context)
        except Exception as error:
            await abort(context, error)

    async def stream_doc(self, message: bytes, context: Any) -> AsyncIterator[bytes]:
        """Answer one document with a stream of documents."""
        begun = False
        try:
            rules = self.service.rules
            proto, endpoint, request = await handled(lambda: _streamed(message, rules), long=is_long(message))
            _name_ignored(context, [request])
            with self.service.writing():  # until the last document is written
                async with self.service.stream(request, context.time_remaining()) as events:
                    while bodies := await events.bodies():
                        for body in bodies:
                            yield await handled(partial(_event, proto.header, body), long=_repeats(body))
                            begun = True
        except Exception as error:
            if not begun:
                await abort(context, error)
            note_error(error)
            yield _last_event(proto.header, endpoint, _request_error(error))

    async def dry_run(self, message: bytes, context: Any) -> bytes:
        """Return success if a request would be served now."""
        status = jina_pb2.StatusProto()
        if not self.service.ready:
            status.code, status.description = status.ERROR, "not ready"
        return cast("bytes", status.SerializeToString())

    async def info(self, message: bytes, context: Any) -> bytes:
        """Return the versions behind this port; nothing about the machine or its environment."""
        info = jina_pb2.JinaInfoProto()
        for name in ("rungpt", "jina", "docarray"):
            info.jina[name] = version(name)
        return cast("bytes", info.SerializeToString())

    async def endpoint_discovery(self, message: bytes, context: Any) -> bytes:
        """Return the endpoints, with the JSON schemas of their documents."""
        answer = jina_pb2.EndpointsProto(endpoints=list(ENDPOINTS))
        json_format.ParseDict({path: _schemas(endpoint) for path, endpoint in ENDPOINTS.items()}, answer.schemas)
        return cast("bytes", answer.SerializeToString())

    async def _data(self, message: bytes, context: Any) -> bytes:
        """Return the answer to a DataRequest: its documents run together."""
        header, requests = await _asked(message, self.service.rules)
        _name_ignored(context, requests)
        turns = Turns(max(1, len(requests)))
        calls = [partial(self.service.answer, request, context.time_remaining()) for request in requests]
        answers = await together([turns.whole(call) for call in calls])
        long = len(answers) > MOST_ON_LOOP or not all(map(_has_short_answer, requests))
        return await handled(lambda: _whole(header, answers), long=long)


def _name_ignored(context: Any, requests: Sequence[Any]) -> None:
    """Name the fields without an effect in the trailing metadata. Of several messages of a call the last one counts."""
    if ignored := tuple(dict.fromkeys(name for request in requests for name in request.ignored)):
        context.set_trailing_metadata(((METADATA, ", ".join(ignored[:MOST_NAMES])),))


async def _asked(message: bytes, rules: Rules) -> tuple[Any, list[Any]]:
    """Return a DataRequest's header and its checked requests. Raises a RequestError."""
    long = is_long(message)
    proto, endpoint = await handled(lambda: _opened(jina_pb2.DataRequestProto, message, stream=False), long=long)
    if proto.data.WhichOneof("documents") == "docs_bytes":
        raise InvalidRequest("docs_bytes is not taken here: send the documents as `docs`")
    sent = proto.data.docs.docs
    check_documents(len(sent))

    def checked() -> list[Any]:
        return [_request(endpoint, document, rules, stream=False) for document in sent]

    requests = await handled(checked, long=long or len(sent) > MOST_ON_LOOP)
    if any(endpoint.streams(request) for request in requests):
        raise _called_wrong(endpoint.path, streams=True)
    return proto.header, requests


def _streamed(message: bytes, rules: Rules) -> tuple[Any, Endpoint, Any]:
    """Return a message for a stream, its endpoint and its checked request. Raises a RequestError."""
    proto, endpoint = _opened(jina_pb2.SingleDocumentRequestProto, message, stream=True)
    return proto, endpoint, _request(endpoint, proto.document, rules, stream=True)


def _opened(kind: Any, message: bytes, *, stream: bool) -> tuple[Any, Endpoint]:
    """Return the parsed message and the endpoint that it calls. Raises a RequestError."""
    proto = parse(kind, message)
    if (size := proto.header.ByteSize()) > MOST_HEADER_BYTES:  # each answer has it
        raise InvalidRequest(f"the message's header has {size} bytes, the limit is {MOST_HEADER_BYTES}")
    endpoint = _endpoint(proto.header.exec_endpoint, stream=stream)
    _check_parameters(proto)
    return proto, endpoint


def _has_short_answer(request: Any) -> bool:
    """Return True when the answer is a text; lists of numbers take longer to write."""
    return isinstance(request, Parameters) and request.logprobs is None


def _whole(header: Any, answers: Sequence[Body | Filled]) -> bytes:
    """Return the message with whole answers."""
    message = jina_pb2.DataRequestProto(header=header)
    for body in answers:
        documents.write_answer(body, message.data.docs.docs.add())
    return cast("bytes", message.SerializeToString())


def _raw(message: bytes) -> bytes:
    """Return the bytes as they are: parsing happens later, where a failure becomes an InvalidRequest."""
    return message


def _endpoint(path: str, *, stream: bool) -> Endpoint:
    """Return the endpoint at `path`. Raises UnknownEndpoint, or InvalidRequest if it is called the wrong way."""
    endpoint = ENDPOINTS.get(path)
    if endpoint is None:
        raise UnknownEndpoint(f"no endpoint {path!r}: this server has {', '.join(ENDPOINTS)}")
    note_endpoint(path)
    if (endpoint.event if stream else endpoint.answer) is None:
        raise _called_wrong(path, streams=not stream)
    return endpoint


def _called_wrong(path: str, *, streams: bool) -> InvalidRequest:
    way = "a stream: call it with stream_doc" if streams else "one answer: call it with post"
    return InvalidRequest(f"{path} gives {way}")


def _check_parameters(proto: Any) -> None:
    names = [name for name in proto.parameters.fields if not name.startswith("__")]  # Jina's client adds some
    if names:
        raise InvalidRequest(f"{names[0]}: give parameters as fields of the document", param=names[0])


def _request(endpoint: Endpoint, message: Any, rules: Rules, *, stream: bool) -> Any:
    """Return the checked request in a document's message. Raises InvalidRequest."""
    try:
        return documents.message_to_request(cast("Any", endpoint.request), message, stream=stream, rules=rules)
    except RequestError:
        raise
    except Exception as error:  # docarray fails in many ways on malformed documents
        raise InvalidRequest(f"the document cannot be read: {type(error).__name__}: {error}") from error


def _repeats(body: Body) -> bool:
    """Return True for an event that repeats what earlier events had, log-probabilities included."""
    return getattr(body, "type", "").endswith((".done", ".completed", ".incomplete"))


def _event(header: Any, body: Body) -> bytes:
    message = jina_pb2.SingleDocumentRequestProto(header=header)
    documents.write_answer(body, message.document)
    return cast("bytes", message.SerializeToString())


def _last_event(header: Any, endpoint: Endpoint, error: RequestError) -> bytes:
    """Return the document with the error; the header's status makes Jina's own client raise it."""
    failed = jina_pb2.HeaderProto()
    failed.CopyFrom(header)
    failed.status.code, failed.status.description = failed.status.ERROR, error.message
    failed.status.exception.name = type(error).__name__
    failed.status.exception.args.append(json.dumps(error.to_dict()))
    document = documents.error_to_document(endpoint.body(stream=True), error).to_protobuf()
    return cast("bytes", jina_pb2.SingleDocumentRequestProto(header=failed, document=document).SerializeToString())


def _request_error(error: Exception) -> RequestError:
    if isinstance(error, RequestError):
        return error
    log.error("a request failed", exc_info=error)
    return InternalError(f"the request failed: {type(error).__name__}")


async def abort(context: Any, error: Exception) -> NoReturn:
    """End the call with the error's status, and the whole error in its metadata."""
    failure = _request_error(error)
    note_error(failure)
    sent = {name: text[:MOST_TEXT] if text else text for name, text in failure.to_dict().items()}
    metadata = [(ERROR_METADATA, json.dumps(sent))]
    if isinstance(failure, QueueFull | RateLimited):
        metadata.append(("retry-after", str(failure.retry_after)))
    await context.abort(grpc.StatusCode[failure.grpc_code], sent["message"], tuple(metadata))
    raise AssertionError("abort raises")


def _schemas(endpoint: Endpoint) -> dict[str, Any]:
    def of(model: Any) -> dict[str, Any]:
        cls = cast("Any", documents.document_class(model))
        return {"name": cls.__name__, "model": cls.model_json_schema()}

    return {
        "input": of(endpoint.request),
        "output": of(endpoint.answer or endpoint.event),
        "is_generator": endpoint.answer is None,
        "is_singleton_doc": endpoint.answer is None,
        "parameters": {"name": None, "model": None},
    }
