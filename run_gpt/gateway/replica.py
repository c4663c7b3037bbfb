"""One executor as the gateway sees it: a gRPC channel of our own, the calls on it, and what is known of its state.

Only the names of Jina's messages and methods are used, which are its wire format, not its private connection pool.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import grpc
from docarray.proto import DocProto
from jina.proto import jina_pb2

from run_gpt import request_ids
from run_gpt.api import documents
from run_gpt.api.answers import Status
from run_gpt.api.models import LoadModelRequest, UnloadModelRequest
from run_gpt.errors import RequestError
from run_gpt.gateway.messages import check_header, fields_of
from run_gpt.gateway.request_span import carried

log = logging.getLogger(__name__)

State = Literal["connecting", "unloaded", "loading", "ready", "draining", "dead", "lost"]

PROBE_SECONDS = 0.5
PROBE_TIMEOUT = 2.0
SILENT_SECONDS = 10.0
"""A replica whose port is open but which answers no probe for so long is lost; a busy one answers late."""
LOAD_SECONDS = 3600.0
"""Longest that a replica may take to load its model."""
UNLOAD_SECONDS = 60.0
"""Longest that it may take to give its memory back."""

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Two gateways in one process must not share a connection: each ends its own.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
]


class Replica:
    """One executor at `address` ("host:port").

    States: connecting (not seen yet), unloaded and loading (it has no model in memory), ready, draining and dead (as it
    says), lost (was there, does not answer). Those that are leaving have one of them, too.
    """

    def __init__(self, address: str, prepare: "Callable[[Replica], Awaitable[None]] | None" = None):
        """`prepare`: what is awaited each time that it says it is ready and was not, before it counts as ready."""
        self.address = address
        self._prepare = prepare
        self.state: State = "connecting"
        self.status: Status | None = None
        self.in_flight = 0
        """Requests of ours that it has now."""
        self.cache = object()
        """Stands for the prompts that it keeps; another each time that it becomes ready, for it may have lost them."""
        self.restarts = 0
        """How often another process was found at its address."""
        self.leaving = False
        """Its address is no longer named: it finishes what it runs and gets nothing new."""
        self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._unary = self._channel.unary_unary(
            "/jina.JinaSingleDataRequestRPC/process_single_data",
            request_serializer=jina_pb2.DataRequestProto.SerializeToString,
            response_deserializer=jina_pb2.DataRequestProto.FromString,
        )
        self._stream = self._channel.unary_stream(
            "/jina.JinaSingleDocumentRequestRPC/stream_doc",
            request_serializer=jina_pb2.SingleDocumentRequestProto.SerializeToString,
            response_deserializer=jina_pb2.SingleDocumentRequestProto.FromString,
        )
        self._silent_since: float | None = None
        """When the first of the probes was sent that it has not answered."""
        self._doubt = asyncio.Event()

    def unary(self, path: str, document: DocProto | None, request_id: str, timeout: float) -> Any:
        """The gRPC call that answers one document (or none) with a DataRequestProto."""
        message = jina_pb2.DataRequestProto()
        message.header.request_id, message.header.exec_endpoint = request_id, path
        message.data.docs.docs.extend([] if document is None else [document])
        return self._unary(message, timeout=timeout, metadata=_metadata(path, request_id))

    def stream(self, path: str, document: DocProto, request_id: str, timeout: float) -> Any:
        """The gRPC call that answers one document with SingleDocumentRequestProtos."""
        message = jina_pb2.SingleDocumentRequestProto(document=document)
        message.header.request_id, message.header.exec_endpoint = request_id, path
        return self._stream(message, timeout=timeout, metadata=_metadata(path, request_id))

    @property
    def takes_requests(self) -> bool:
        """Whether new requests may come here."""
        return self.state == "ready" and not self.leaving

    @property
    def answers(self) -> bool:
        """Whether it answers probes, whatever it says."""
        return self.state not in ("connecting", "lost")

    @property
    def loads(self) -> bool:
        """Whether it can load its model, or does."""
        return self.state in ("unloaded", "loading") and not self.leaving

    def suspect(self, state: State = "lost") -> None:
        """A call found no connection, or was refused: no further request comes here until a probe is answered."""
        self.state = state
        self._doubt.set()

    def is_named(self, named: bool) -> None:
        """Whether its address is one of the pool's."""
        if named and self.leaving:
            self.suspect("connecting")  # it has not heard of what was changed meanwhile
        self.leaving = not named

    async def watch(self, first: float, pause: Callable[[], float]) -> None:
        """Probe for ever, after `first` seconds and then after each `pause()`, and at once when a call went wrong."""
        await asyncio.sleep(first)
        while True:
            self._doubt.clear()
            await self.probe()
            try:
                await asyncio.wait_for(self._doubt.wait(), pause())
            except TimeoutError:
                continue
            await asyncio.sleep(0.05)  # it is just gone: no storm of probes

    async def probe(self) -> None:
        """Ask for `/status` once and keep what it says."""
        sent = time.monotonic()
        try:
            status = await self._ask_status()
        except grpc.aio.AioRpcError as error:
            self._unheard(sent, gone=error.code() == grpc.StatusCode.UNAVAILABLE)
        except (IndexError, ValueError):  # another program, or an executor of another kind, listens there
            self._unheard(sent, gone=True)
        else:
            await self._heard(status)

    async def load(self) -> None:
        """Have it load its model, and hear how far that is until it is over. Raises AioRpcError, ValueError."""
        document = documents.request_to_document(LoadModelRequest(model=self.model or ""))
        call = self.stream("/load", document.to_protobuf(), "load", LOAD_SECONDS)
        async for message in call:
            await self._heard(Status.model_validate(fields_of(message.document)))

    async def unload(self) -> None:
        """Have it give its model's memory back. Raises Unavailable if it is busy, AioRpcError, IndexError."""
        document = documents.request_to_document(UnloadModelRequest(model=self.model or ""))
        answer = await self.unary("/unload", document.to_protobuf(), "unload", UNLOAD_SECONDS)
        check_header(answer.header)
        await self._heard(Status.model_validate(fields_of(answer.data.docs.docs[0])))

    @property
    def model(self) -> str | None:
        """Its model's name, once it has said it."""
        return self.status.model if self.status else None

    async def state_now(self) -> State:
        """What it says now, `lost` if nothing: asked without keeping it, which is the watcher's part."""
        try:
            return (await self._ask_status()).state
        except (grpc.aio.AioRpcError, IndexError, ValueError):
            return "lost"

    async def _heard(self, status: Status) -> None:
        """Take in what it says of itself."""
        self._silent_since = None
        if self.status is not None and self.status.started != status.started:
            self.restarts += 1
        self.status = status
        if status.state == "ready" and self.state != "ready":
            if not await self._prepared():
                return
            self.cache = object()
        self.state = status.state

    async def ask_metrics(self, timeout: float) -> str:
        """Its metrics in Prometheus' text form. Raises AioRpcError, IndexError or KeyError where it has none."""
        answer = await self.unary("/metrics", None, "metrics", timeout)
        return str(fields_of(answer.data.docs.docs[0])["text"])

    async def _ask_status(self) -> Status:
        answer = await self.unary("/status", None, "probe", PROBE_TIMEOUT)
        return Status.model_validate(fields_of(answer.data.docs.docs[0]))

    async def _prepared(self) -> bool:
        try:
            if self._prepare is not None:
                await self._prepare(self)
        except RequestError as error:
            log.warning("the replica at %s is not what the others are: %s", self.address, error.message)
            return False
        return True

    def _unheard(self, sent: float, *, gone: bool) -> None:
        self._silent_since = self._silent_since or sent
        silent = time.monotonic() - self._silent_since > SILENT_SECONDS and self.state != "loading"
        if self.state != "connecting" and (gone or silent):
            self.state = "lost"

    def describe(self) -> dict[str, Any]:
        """What `/ready` says of this replica."""
        known = self.status if self.answers else None
        return {
            "address": self.address,
            "model": self.model,
            "state": "leaving" if self.leaving else self.state,
            "in_flight": self.in_flight,
            "running": known.running if known else None,
            "waiting": known.waiting if known else None,
        }

    async def close(self) -> None:
        """End the channel and all calls on it."""
        await self._channel.close()


def _metadata(path: str, request_id: str) -> tuple[tuple[str, str], ...]:
    """For Jina where a call goes; for the executor what its sender calls the request, and the trace that it is of."""
    return ("endpoint", path), (request_ids.METADATA, request_ids.current.get() or request_id), *carried()
