"""Bounds of the gRPC port, on a server in this process: what a client may make it read, hold, and wait for."""

import asyncio
import gzip
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any

# isort: off
import run_gpt.process._jina  # noqa: F401  (before jina)

# isort: on
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from jina.proto import jina_pb2
from raw_http2 import RawClient, message

from run_gpt.api.answers import Choice, GenerateAnswer, Usage
from run_gpt.api.pieces import Whole
from run_gpt.api.schema import GenerateRequest
from run_gpt.client import wire
from run_gpt.config import GatewayConfig
from run_gpt.gateway import grpc_access, grpc_connections, grpc_messages, grpc_server
from run_gpt.gateway.grpc_connections import ConnectionWatch
from run_gpt.gateway.grpc_reads import Bound, Reads
from run_gpt.gateway.keys import Keys
from run_gpt.gateway.legacy import METHOD as CALL
from run_gpt.gateway.legacy import LegacyInterceptor, LegacyRequest
from run_gpt.gateway.service import Service

KEY = "the-key-of-the-test"
SENT_KEY = (("authorization", KEY),)
LIMIT = 100_000
CHECK, DRY_RUN = "/grpc.health.v1.Health/Check", "/jina.JinaGatewayDryRunRPC/dry_run"
WATCH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
UNARY, STREAM = wire.UNARY, wire.STREAM
MUCH = 50_000_000


class Pool:
    """A pool that answers each prompt with itself, when `go` is set."""

    model, watched, context_length = "m", True, 100
    adapters = SimpleNamespace(applied=list)
    replicas = ready = sure = (SimpleNamespace(describe=lambda: {}, state="ready", status=None),)

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.asked = 0

    def check_ready(self) -> None:
        """Do nothing: this pool is always ready."""

    async def whole(self, request: Any, request_id: str, limit: float) -> Whole:
        self.asked += 1
        await self.go.wait()
        usage = Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)
        choices = [Choice(index=0, text=str(request.prompt), finish_reason="stop")]
        answer = GenerateAnswer(id="1", created=2**33, model="m", usage=usage, choices=choices, prompt="x")
        return Whole(answer.to_json().encode())


@asynccontextmanager
async def serving(keys: Keys | None = None) -> AsyncIterator[SimpleNamespace]:
    """Yield a gRPC port in this event loop, with the `pool` behind it."""
    pool, reads = Pool(), Reads()
    service = Service([pool], GatewayConfig(max_body_bytes=LIMIT))  # type: ignore[list-item]
    access = grpc_access.AccessInterceptor(keys, service.count, reads=reads, most_bytes=LIMIT)
    server = grpc_server.build_server(service, [access, LegacyInterceptor(service.answer, LIMIT)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    watch = asyncio.create_task(ConnectionWatch(port, reads, grpc_server.MOST_OF_ADDRESS).run())
    try:
        yield SimpleNamespace(port=port, pool=pool, reads=reads, service=service, server=server)
    finally:
        watch.cancel()
        await server.stop(0)


@pytest.fixture
async def keyed() -> AsyncIterator[SimpleNamespace]:
    async with serving(Keys(KEY)) as served:
        yield served


@pytest.fixture
async def open_port() -> AsyncIterator[SimpleNamespace]:
    async with serving() as served:
        yield served


@pytest.fixture
async def channel(keyed: SimpleNamespace) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{keyed.port}") as opened:
        yield opened


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)  # between two polls of the condition


async def sent_by(port: int, method: str, data: bytes) -> tuple[int, bool]:
    """Return the number of bytes of a call's data that the server took, and True if it ended the call."""

    def send() -> tuple[int, bool]:
        with RawClient(port) as client:
            client.open(1, method)
            return client.send(1, data, seconds=3), client.wait_over(1)

    return await asyncio.to_thread(send)


async def status_of(channel: grpc.aio.Channel, method: str, *messages: bytes, metadata: Any = SENT_KEY) -> str:
    try:
        async for _ in channel.stream_stream(method)(iter(messages), metadata=metadata, timeout=20):
            pass
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


# Bytes


@pytest.mark.parametrize("method", [CALL, UNARY, STREAM, REFLECTION, "/no.such/method"])
async def test_nothing_is_read_of_a_caller_without_a_key(keyed: SimpleNamespace, method: str) -> None:
    """Else some streams with large messages would take the gateway's memory."""
    sent, ended = await sent_by(keyed.port, method, message(MUCH))
    assert ended
    assert sent <= 2 * 65536


@pytest.mark.parametrize("method", [CHECK, WATCH, DRY_RUN])
async def test_a_method_without_a_key_takes_no_large_message(keyed: SimpleNamespace, method: str) -> None:
    """gRPC alone would read four gigabytes before it refused them."""
    _, ended = await sent_by(keyed.port, method, message(200_000))
    assert ended
    sent, ended = await sent_by(keyed.port, method, message(4 * MUCH))
    assert ended
    assert sent < 4 * MUCH


async def test_a_message_that_announces_too_much_is_ended_before_it_is_whole(open_port: SimpleNamespace) -> None:
    for method in (CALL, UNARY, STREAM):
        sent, ended = await sent_by(open_port.port, method, message(4 * MUCH))
        assert ended
        assert sent < 4 * MUCH
    assert not open_port.reads.peers


async def test_a_compressed_message_is_refused(channel: grpc.aio.Channel) -> None:
    """A kilobyte may be a gigabyte when it is inflated."""
    bomb = gzip.compress(bytes(MUCH))
    for method in (CALL, UNARY, STREAM, CHECK, DRY_RUN, REFLECTION):
        for algorithm in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            call = channel.stream_stream(method)(iter([b"\0" * 50_000]), metadata=SENT_KEY, compression=algorithm)
            with pytest.raises(grpc.aio.AioRpcError, match="compressed") as raised:
                await call.read()
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await status_of(channel, method, bomb) == "INVALID_ARGUMENT"


async def test_a_message_of_the_limit_is_taken_and_one_above_is_not(channel: grpc.aio.Channel) -> None:
    def sized(size: int) -> bytes:
        request = GenerateRequest(prompt="x" * size)
        return wire.unary_message("/generate", request).SerializeToString()

    overhead = len(sized(LIMIT)) - LIMIT
    assert await status_of(channel, UNARY, sized(LIMIT - overhead)) == "OK"
    for size in (LIMIT, 2 * LIMIT, 20 * LIMIT):
        assert await status_of(channel, UNARY, sized(size)) == "RESOURCE_EXHAUSTED"


async def test_a_stream_reads_no_more_messages_than_it_answers(
    keyed: SimpleNamespace, channel: grpc.aio.Channel
) -> None:
    keyed.pool.go.clear()
    sent = 0

    async def prompts() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(200):
            yield wire.unary_message("/generate", GenerateRequest(prompt="x" * (LIMIT // 2))).SerializeToString()
            sent += 1

    call = channel.stream_stream(CALL)(prompts(), metadata=SENT_KEY)
    await until(lambda: keyed.pool.asked >= 4)
    before = sent
    keyed.pool.go.set()
    answered = [answer async for answer in call]
    assert len(answered) == 200
    assert before < 100, "the client wrote much more than the server answered"


# Counts


def documents(count: int, **values: Any) -> bytes:
    request = jina_pb2.DataRequestProto()
    request.header.exec_endpoint = "/generate"
    for _ in range(count):
        document = request.data.docs.docs.add()
        document.data["prompt"].text = "x"
    return request.SerializeToString()


def older(count: int) -> bytes:
    request = LegacyRequest()
    request.header.exec_endpoint = "/generate"
    for i in range(count):
        request.data.docs.docs.add(id=b"%032x" % i).tags.update({"prompt": "x"})
    return request.SerializeToString()


@pytest.mark.parametrize("method", [CALL, UNARY])
async def test_the_documents_of_a_message_are_bounded(channel: grpc.aio.Channel, method: str) -> None:
    most = grpc_messages.MOST_DOCUMENTS
    assert await status_of(channel, method, documents(most)) == "OK"
    assert await status_of(channel, method, documents(most + 1)) == "INVALID_ARGUMENT"


async def test_the_documents_of_an_older_message_are_bounded(channel: grpc.aio.Channel) -> None:
    calls = channel.stream_stream(CALL)(iter([older(grpc_messages.MOST_DOCUMENTS + 1), older(2)]), metadata=SENT_KEY)
    refused, answered = [LegacyRequest.FromString(answer) async for answer in calls]
    assert "documents" in refused.header.status.description
    assert answered.header.status.code == 0


async def test_a_long_header_is_refused(channel: grpc.aio.Channel) -> None:
    """Every event of a stream repeats it."""
    request = jina_pb2.SingleDocumentRequestProto()
    request.header.exec_endpoint = "/generate_stream"
    request.header.request_id = "x" * 50_000
    request.document.data["prompt"].text = "x"
    assert await status_of(channel, STREAM, request.SerializeToString()) == "INVALID_ARGUMENT"


# Waits


async def test_a_call_whose_message_does_not_come_is_ended(
    keyed: SimpleNamespace, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_access, "OPEN_BOUND", Bound(65536, 0.05, 256))

    async def nothing() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    for method in (CHECK, WATCH, DRY_RUN):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.stream_stream(method)(nothing()).read()
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_calls_without_messages_leave_room_for_others(
    keyed: SimpleNamespace, channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_access, "OPEN_BOUND", Bound(65536, 30, 3))
    monkeypatch.setattr(grpc_access, "MOST_OPEN", 5)
    with RawClient(keyed.port) as client:
        for stream in range(1, 41, 2):
            client.open(stream, CHECK)
        await until(lambda: len(client.ended) == 17)
        assert await status_of(channel, CHECK, b"", metadata=()) == "OK"
    watching = [channel.unary_stream(WATCH)(b"") for _ in range(8)]
    for watch in watching:
        await watch.read()
    await until(lambda: sum(watch.done() for watch in watching) == 3)
    assert await status_of(channel, CHECK, b"", metadata=()) == "OK"


async def test_a_watcher_that_reads_nothing_stops_no_other(keyed: SimpleNamespace, channel: grpc.aio.Channel) -> None:
    """The library's servicer wrote to watchers under a lock: health froze for everybody, and the stop hung."""
    health = health_pb2_grpc.HealthStub(channel)
    states = health_pb2.HealthCheckResponse
    first, second = health.Watch(health_pb2.HealthCheckRequest()), health.Watch(health_pb2.HealthCheckRequest())
    assert (await first.read()).status == (await second.read()).status == states.SERVING
    first.cancel()
    keyed.service.draining = True
    assert (await second.read()).status == states.NOT_SERVING
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == states.NOT_SERVING


# Connections


async def test_silent_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_server, "HANDSHAKE_SECONDS", 1)
    monkeypatch.setattr(grpc_server, "IDLE_SECONDS", 1)
    async with serving() as served:
        silent = socket.create_connection(("127.0.0.1", served.port), timeout=20)

        def wait_closed() -> None:
            with silent:
                while silent.recv(1000):
                    pass

        await asyncio.to_thread(wait_closed)
        with RawClient(served.port) as client:  # it has said that it speaks HTTP/2, and no more
            await until(lambda: client.closed)


async def test_connections_are_bounded_together_and_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_connections, "IDLE_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(grpc_server, "MOST_OF_ADDRESS", 3)
    async with serving() as served:
        clients = []
        for _ in range(5):
            clients.append(RawClient(served.port))
            await asyncio.sleep(0.1)  # a look between two of them, so that the order is known
        await until(lambda: sum(client.closed for client in clients) == 2)
        assert [client.closed for client in clients] == [True, True, False, False, False], "the silent, oldest first"
        for client in clients:
            with client:
                pass
    monkeypatch.setattr(grpc_server, "MOST_CONNECTIONS", 2)
    async with serving() as served:
        clients = [RawClient(served.port) for _ in range(5)]
        await until(lambda: sum(client.closed for client in clients) == 3)


def test_bytes_are_counted_for_each_connection_and_a_slow_one_loses_its_calls_only() -> None:
    async def look() -> None:
        reads, bound = Reads(), Bound(1000, 30, 10)
        watch = ConnectionWatch(1, reads, 10)

        async def nothing() -> AsyncIterator[bytes]:
            await asyncio.Event().wait()
            yield b""

        waits = [asyncio.create_task(reads.next(nothing(), peer, bound, first=True)) for peer in ("a:1", "b:1")]
        await asyncio.sleep(0)
        watch.look({"a:1": 900, "b:1": 900}, {})
        much = grpc_connections.SLACK + 20_000
        watch.look({"a:1": 900, "b:1": much}, {})
        done, _ = await asyncio.wait(waits, timeout=0.1)
        assert done == {waits[1]}
        with pytest.raises(Exception, match="more than the limit of 1000 bytes"):
            waits[1].result()
        reads.taken["a:1"] += much
        watch.look({"a:1": much, "b:1": 5 * much}, reads.taken.copy())
        assert not waits[0].done()
        waits[0].cancel()

    asyncio.run(look())


# Junk, numbers, and the end


async def test_junk_is_an_invalid_argument_for_every_method(channel: grpc.aio.Channel) -> None:
    for method in (CALL, UNARY, STREAM, CHECK, WATCH, REFLECTION):
        for junk in (b"\xff\xff\xff", b"\x0a\xff", b"\x0a\x02\xff\xfe" if method in (CHECK, WATCH) else b"\x0a\x7f"):
            assert await status_of(channel, method, junk) == "INVALID_ARGUMENT", (method, junk)
    assert await status_of(channel, CHECK, metadata=()) == "INVALID_ARGUMENT", "a call without a message"
    assert await status_of(channel, CHECK, b"\x0a\x01x", metadata=()) == "NOT_FOUND"


async def test_reflection_lists_the_services(channel: grpc.aio.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = [one async for one in stub.ServerReflectionInfo(iter([request]), metadata=SENT_KEY)]
    assert "jina.JinaRPC" in [service.name for service in answer.list_services_response.service]


NUMBERS = [2.0**31, 2.0**63, 1e300, -(2.0**31) - 1, float("inf"), float("nan"), 2**31 - 1, -1, 0.5]


@pytest.mark.parametrize("name", [name for name in GenerateRequest.model_fields if name != "id"])
async def test_no_number_is_an_internal_error(channel: grpc.aio.Channel, name: str) -> None:
    """A Jina document has larger numbers than 32 bits as floats."""
    statuses = set()
    for value in NUMBERS:
        request = jina_pb2.DataRequestProto()
        request.header.exec_endpoint = "/generate"
        document = request.data.docs.docs.add()
        document.data["prompt"].text = "x"
        for node in (document.data[name], document.data[name].list.data.add()):
            if isinstance(value, int):
                node.integer = value
            else:
                node.float = value
            statuses.add(await status_of(channel, UNARY, request.SerializeToString()))
        old = LegacyRequest()
        old.header.exec_endpoint = "/generate"
        old.parameters.update({name: value, "logit_bias": {"1": value}})
        old.data.docs.docs.add(id=b"1" * 32).tags.update({"prompt": value if name == "prompt" else "x"})
        async for answer in channel.stream_stream(CALL)(iter([old.SerializeToString()]), metadata=SENT_KEY):
            assert LegacyRequest.FromString(answer).header.status.exception.name in ("InvalidRequest", "")
    assert statuses <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}


async def test_a_stop_does_not_wait_for_idle_clients() -> None:
    async with serving() as served, grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as idle:
        assert await status_of(idle, CHECK, b"") == "OK"
        watch = idle.unary_stream(WATCH)(b"")
        await watch.read()
        silent = idle.stream_stream(CALL)()
        await silent.write(documents(1))
        await silent.read()
        begun = time.monotonic()
        await served.server.stop(grpc_server.STOP_SECONDS)
        assert time.monotonic() - begun < 4
        for call in (watch, silent):
            with suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
                await call.read()
