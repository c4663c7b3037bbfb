"""The inner wire over a real gRPC server: answers are complete, in order, and each ends on its own."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from run_gpt.api.pieces import Head, Piece, Whole
from run_gpt.errors import DeadlineExceeded, InternalError, InvalidRequest, RequestError
from run_gpt.link import calling, frames, outbox, serving
from run_gpt.link.calling import ConnectionFailed, Exchange, Link, OtherVersion
from run_gpt.link.frames import METHOD, Start
from run_gpt.link.serving import LinkServer, Reply


class _Service(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, server: LinkServer):
        self._server = server

    def service(self, details: Any) -> Any:
        return self._server.handler if details.method == METHOD else None


OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 100),
]


class Ends:
    """An executor's end with scripted answers, and a gateway's end."""

    def __init__(self) -> None:
        self.handle: Callable[[Start, Reply], Awaitable[None]] = self.write_numbers
        self._port = 0
        self.serve()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self._port}", OPTIONS)
        self.link = Link(self.channel)

    def serve(self) -> None:
        """Make the executor's end, at the same port each time."""
        self.server = LinkServer(lambda start, reply: self.handle(start, reply))
        self._grpc = grpc.aio.server()
        self._grpc.add_generic_rpc_handlers((_Service(self.server),))
        self._port = self._grpc.add_insecure_port(f"127.0.0.1:{self._port}")

    async def open(self) -> None:
        await self._grpc.start()

    async def close(self) -> None:
        await self.link.close()
        await self.channel.close()
        await self.stop()

    async def stop(self) -> None:
        await self._grpc.stop(None)

    async def start(self, path: str = "/x", body: bytes = b"") -> tuple[Exchange, asyncio.Event]:
        arrived = asyncio.Event()
        return await self.link.start(path, body, request_id="r", trace={}, arrived=arrived), arrived

    async def write_numbers(self, start: Start, reply: Reply) -> None:
        """Write as many numbers as the body says, in random bursts."""
        choose = random.Random(start.stream)
        reply.put(Head(f"id-{start.stream}", 1, "m", 3))
        for number in range(int(start.body)):
            reply.put(Piece(number % 2, f"{number} ", 1))
            if choose.random() < 0.3:
                await asyncio.sleep(0)


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    both = Ends()
    await both.open()
    yield both
    await both.close()


async def read(exchange: Exchange, arrived: asyncio.Event, *, slow: random.Random | None = None) -> list[Any]:
    """Read all news. Raises the error at the end."""
    news: list[Any] = []
    async with asyncio.timeout(20):
        while True:
            arrived.clear()
            news += exchange.take()
            if exchange.over:
                news += exchange.take()
                break
            await arrived.wait()
            for _ in range(slow.randrange(20) if slow else 0):
                await asyncio.sleep(0)
    if exchange.error is not None:
        raise exchange.error
    return news


async def whole(ends: Ends, count: int, slow: random.Random | None = None) -> None:
    exchange, arrived = await ends.start(body=b"%d" % count)
    head, *pieces = await read(exchange, arrived, slow=slow)
    assert isinstance(head, Head)
    for index in range(2):
        text = "".join(piece.text for piece in pieces if piece.index == index)
        assert text == "".join(f"{number} " for number in range(index, count, 2))
    assert sum(piece.tokens for piece in pieces) == count


@pytest.mark.parametrize("seed", range(3))
async def test_many_streams_share_a_call_and_each_is_whole_and_in_order(ends: Ends, seed: int) -> None:
    """The order of pieces and the speed of readers are random."""
    choose = random.Random(seed)
    slow = [random.Random(i) if choose.random() < 0.5 else None for i in range(40)]
    await asyncio.gather(*(whole(ends, choose.randrange(1, 300), one) for one in slow))


async def test_long_parts_cross_in_several_frames(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """To read or write one large frame would hold the event loop of either end."""
    sizes: list[int] = []
    encode = frames.encode
    monkeypatch.setattr(outbox, "encode", lambda frame: sizes.append(len(encode(frame))) or encode(frame))
    monkeypatch.setattr(serving, "FRAME_BYTES", 1000)
    parts = [[bytes([i]) * 300] * 20 for i in range(5)]

    async def answer(start: Start, reply: Reply) -> None:
        reply.put(Whole(b"{}", parts))
        reply.put(Piece(0, "text", 1, "stop", logprobs=parts[0]))

    ends.handle = answer
    got = await read(*await ends.start())
    wholes = [one for one in got if isinstance(one, Whole)]
    assert b"".join(one.json for one in wholes) == b"{}"
    assert [[part for one in wholes for part in one.parts[place]] for place in range(5)] == parts
    pieces = [one for one in got if isinstance(one, Piece)]
    assert [part for one in pieces for part in one.logprobs or ()] == parts[0]
    assert pieces[-1].finish == "stop"
    assert max(sizes) < 1600


async def test_errors_cross_as_they_are_and_are_nobody_elses(ends: Ends) -> None:
    async def handle(start: Start, reply: Reply) -> None:
        if start.path == "/refused":
            raise InvalidRequest("no", param="x")
        if start.path == "/broken":
            raise ZeroDivisionError("oh")
        if start.path == "/cancelled":
            raise asyncio.CancelledError
        await ends.write_numbers(start, reply)

    ends.handle = handle
    beside = asyncio.create_task(whole(ends, 500))
    with pytest.raises(InvalidRequest, match="no") as refused:
        await read(*await ends.start("/refused"))
    assert refused.value.param == "x"
    with pytest.raises(InternalError, match="ZeroDivisionError: oh"):
        await read(*await ends.start("/broken"))
    with pytest.raises(InternalError, match="CancelledError"):
        await read(*await ends.start("/cancelled"))
    await beside


async def hang(started: asyncio.Event, ended: asyncio.Event, reply: Reply) -> None:
    started.set()
    reply.put(b"begun")
    try:
        await asyncio.Event().wait()
    finally:
        ended.set()


@pytest.mark.parametrize("how", ["close", "deadline"])
async def test_an_exchange_that_ends_here_is_cancelled_there(ends: Ends, how: str) -> None:
    started, ended = asyncio.Event(), asyncio.Event()
    ends.handle = lambda start, reply: hang(started, ended, reply)
    exchange, arrived = await ends.start()
    await started.wait()
    if how == "close":
        exchange.close()
        await read(exchange, arrived)
    else:
        exchange.limit(0.01)
        with pytest.raises(DeadlineExceeded, match=r"0\.01 s"):
            await read(exchange, arrived)
    async with asyncio.timeout(10):
        await ended.wait()


async def test_what_runs_when_the_server_ends_is_answered_and_then_the_call_ends(ends: Ends) -> None:
    go, started = asyncio.Event(), asyncio.Event()

    async def handle(start: Start, reply: Reply) -> None:
        started.set()
        await go.wait()
        reply.put(b"answer")

    ends.handle = handle
    exchange, arrived = await ends.start()
    await started.wait()
    ending = asyncio.create_task(ends.server.end())
    await asyncio.sleep(0)
    assert not ending.done()
    go.set()
    assert await read(exchange, arrived) == [b"answer"]
    await ending
    with pytest.raises(ConnectionFailed):
        await until_refused(ends)


async def test_a_server_that_ends_waits_for_no_request_of_a_gateway_that_has_gone(ends: Ends) -> None:
    started, ended = asyncio.Event(), asyncio.Event()
    ends.handle = lambda start, reply: hang(started, ended, reply)
    await ends.start()
    await started.wait()
    ending = asyncio.create_task(ends.server.end())
    await asyncio.sleep(0)
    await ends.link.close()
    async with asyncio.timeout(10):
        await ending
    assert ended.is_set()


async def connected(ends: Ends) -> Any:
    """Return a call that reads only when the test asks it to."""
    call = ends.channel.stream_stream(METHOD)()
    await call.write(frames.encode(frames.Hello(frames.VERSION)))
    assert frames.decode_welcome(await call.read()).version == frames.VERSION
    return call


async def test_a_gateway_that_reads_slowly_gets_all_that_is_answered_before_the_server_ends(ends: Ends) -> None:
    """Otherwise the requests that a drain has waited for would fail at its end."""
    go, written = asyncio.Event(), asyncio.Event()
    large = b"x" * 3_000_000

    async def handle(start: Start, reply: Reply) -> None:
        if start.stream:
            await go.wait()
            reply.put(b"last")
            return
        for _ in range(6):  # more than gRPC buffers without a reader
            reply.put(large)
            await asyncio.sleep(0.05)
        written.set()

    ends.handle = handle
    call = await connected(ends)
    await call.write(frames.encode([Start(stream, "/x", b"", "r") for stream in range(2)]))
    await written.wait()
    ending = asyncio.create_task(ends.server.end())
    await asyncio.sleep(0)
    go.set()
    await asyncio.sleep(0.05)
    messages: list[Any] = []
    async with asyncio.timeout(10):
        while (frame := await call.read()) is not grpc.aio.EOF:
            messages += frames.decode_answering(frame)
        await ending
    assert messages[-2:] == [frames.Body(1, b"last"), frames.Done(1)]
    assert messages[:-2] == [*(frames.Body(0, large) for _ in range(6)), frames.Done(0)]


async def until_refused(ends: Ends) -> None:
    """Send requests until the call has ended here, too."""
    while True:
        await read(*await ends.start())


async def test_a_call_that_breaks_ends_every_exchange_once_and_the_next_request_makes_another(ends: Ends) -> None:
    started, ended = asyncio.Event(), asyncio.Event()
    ends.handle = lambda start, reply: hang(started, ended, reply)
    exchanges = [await ends.start() for _ in range(5)]
    await started.wait()
    await ends.stop()
    for exchange, arrived in exchanges:
        with pytest.raises(ConnectionFailed):
            await read(exchange, arrived)
        exchange.fail(RequestError("late"))
        assert isinstance(exchange.error, ConnectionFailed)
    with pytest.raises(ConnectionFailed):
        await ends.start()
    async with asyncio.timeout(10):
        await ended.wait()
    ends.serve()
    await ends.open()
    ends.handle = ends.write_numbers
    async with asyncio.timeout(10):
        await until_answered(ends)


async def until_answered(ends: Ends) -> None:
    """Send requests until the channel has found the executor's end again."""
    while True:
        try:
            return await whole(ends, 100)
        except ConnectionFailed:
            await asyncio.sleep(0.02)


async def test_a_request_that_is_cancelled_while_it_connects_leaves_the_connection_to_the_others(ends: Ends) -> None:
    first = asyncio.create_task(ends.start())
    second = asyncio.create_task(whole(ends, 10))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert first.cancelled()


async def test_a_link_that_is_closed_ends_what_runs_on_it(ends: Ends) -> None:
    """The request ends here for its reader, and there for the model."""
    started, ended = asyncio.Event(), asyncio.Event()
    ends.handle = lambda start, reply: hang(started, ended, reply)
    exchange, arrived = await ends.start()
    await started.wait()
    await ends.link.close()
    with pytest.raises(ConnectionFailed):
        await read(exchange, arrived)
    async with asyncio.timeout(10):
        await ended.wait()


@pytest.mark.parametrize("module", [calling, serving])
async def test_ends_of_two_versions_say_both(ends: Ends, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    monkeypatch.setattr(module, "VERSION", 7)
    versions = (frames.VERSION, 7) if module is calling else (7, frames.VERSION)
    says = "has version {} of the inner wire, this gateway {}".format(*versions)
    with pytest.raises(OtherVersion, match=says):
        await ends.start()


class Foreign(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A foreign server, which sends these frames in reply to anything."""

    def __init__(self, *says: bytes):
        self._says = says

    def service(self, details: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(self._talk) if self._says else None

    async def _talk(self, incoming: AsyncIterator[bytes], context: Any) -> None:
        for say in self._says:
            await context.write(say)
            await anext(incoming)
        await asyncio.Event().wait()


@asynccontextmanager
async def link_to(foreign: Foreign) -> AsyncIterator[Link]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((foreign,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", OPTIONS)
    link = Link(channel)
    try:
        yield link
    finally:
        await link.close()
        await channel.close()
        await server.stop(None)


@pytest.mark.parametrize(
    ("foreign", "says"), [(Foreign(), "has no inner wire"), (Foreign(b"\xffgarbage"), "another inner wire")]
)
async def test_an_executor_without_this_wire_is_of_another_version(foreign: Foreign, says: str) -> None:
    async with link_to(foreign) as link:
        with pytest.raises(OtherVersion, match=says):
            await link.start("/x", b"", request_id="r", trace={})


async def test_an_answer_that_is_no_frame_is_an_internal_error_of_all_that_run() -> None:
    """No request may be left waiting, and none may be retried on another executor."""
    async with link_to(Foreign(frames.encode(frames.Welcome(frames.VERSION)), b"\xffgarbage")) as link:
        arrivals = [asyncio.Event() for _ in range(3)]
        running = [await link.start("/x", b"", request_id="r", trace={}, arrived=arrived) for arrived in arrivals]
        for exchange, arrived in zip(running, arrivals, strict=True):
            with pytest.raises(InternalError, match="cannot be read"):
                await read(exchange, arrived)


async def test_where_nobody_listens_the_connection_fails(ends: Ends) -> None:
    await ends.stop()
    with pytest.raises(ConnectionFailed):
        await ends.start()


async def test_what_is_no_frame_ends_its_call_and_no_other(ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    beside = asyncio.create_task(whole(ends, 500))
    call = await connected(ends)
    await call.write(b"\xffgarbage")
    assert await call.read() is grpc.aio.EOF
    assert "no frame of the inner wire" in caplog.text
    await beside
