"""A stream over HTTP: with a status of its own or an error as its last event, kept alive, cheap for slow readers."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from run_gpt.api.endpoints import ENDPOINTS
from run_gpt.api.pieces import Head, Piece
from run_gpt.api.schema import GenerateRequest
from run_gpt.api.sse import COMMENT
from run_gpt.errors import InternalError, QueueFull
from run_gpt.gateway import event_stream
from run_gpt.gateway.event_stream import ClientGone, EventStream
from run_gpt.gateway.events import TextEvents
from run_gpt.gateway.stream_writer import StreamWriter
from run_gpt.gateway.streams import Streams
from run_gpt.link.calling import Exchange

REQUEST = GenerateRequest(prompt="x")


class OneExchange:
    """Stand-in for a pool that has one replica, whose exchange the test fills."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.exchange: Any = None
        self.cancelled = False

    def _cancel(self) -> None:
        self.cancelled = True

    async def begin(self, *args: Any) -> Exchange:
        arrived = args[3]
        self.exchange = Exchange(arrived, self._cancel)
        self.begun.set()
        while not (self.exchange.has_news or self.exchange.over):
            arrived.clear()
            await arrived.wait()
        if self.exchange.error is not None and not self.exchange.has_news:
            raise self.exchange.error
        return self.exchange  # type: ignore[no-any-return]


class OneStream:
    """Stand-in for the service."""

    def __init__(self, pool: OneExchange):
        self.pool = pool

    @contextmanager
    def writing(self) -> Any:
        yield

    @asynccontextmanager
    async def stream(self, request: GenerateRequest) -> AsyncIterator[TextEvents]:
        streams = Streams(self.pool, [request], 1e9, lambda: "id")  # type: ignore[arg-type]
        try:
            yield TextEvents(streams, StreamWriter(request, [request]))
        finally:
            await streams.close()


class Client:
    """One client of an EventStream. While `reads` is not set, it reads nothing."""

    def __init__(self, pool: OneExchange):
        self.messages: list[Any] = []
        self.reads, self.gone = asyncio.Event(), asyncio.Event()
        self.reads.set()
        self.arrived = asyncio.Event()
        response = EventStream(OneStream(pool), REQUEST, ENDPOINTS["/generate_stream"])  # type: ignore[arg-type]
        self.answering = asyncio.create_task(response({}, self._receive, self._send))

    async def _receive(self) -> Any:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await self.reads.wait()
        self.messages.append(message)
        self.arrived.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.messages) < count:
                self.arrived.clear()
                await self.arrived.wait()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def texts(self) -> list[str]:
        lines = [line for line in self.body.decode().splitlines() if line.startswith("data: ")]
        return [json.loads(line.removeprefix("data: "))["choices"][0]["text"] for line in lines]


@pytest.fixture
async def pool() -> OneExchange:
    return OneExchange()


def begin(pool: OneExchange) -> Exchange:
    pool.exchange.put(Head("id", 1, "m", 3))
    return pool.exchange  # type: ignore[no-any-return]


async def test_an_error_before_the_first_event_has_its_own_status(pool: OneExchange) -> None:
    client = Client(pool)
    await pool.begun.wait()
    pool.exchange.end(QueueFull("full"))
    with pytest.raises(QueueFull):
        await client.answering
    assert client.messages == []


async def test_an_error_after_it_is_the_last_event(pool: OneExchange) -> None:
    client = Client(pool)
    await pool.begun.wait()
    exchange = begin(pool)
    exchange.put(Piece(0, "a", 1))
    exchange.end(InternalError("broke"))
    await client.answering
    assert [m.get("status") for m in client.messages][:1] == [200]
    assert client.body.count(b"data: ") == 2
    assert b'event: error\ndata: {"error": {"message": "broke"' in client.body
    assert client.messages[-1] == {"type": "http.response.body", "body": b""}


async def test_an_idle_stream_says_that_it_lives(pool: OneExchange, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would otherwise close the connection during a long prefill or the load of a model."""
    monkeypatch.setattr(event_stream, "IDLE_SECONDS", 0.01)
    client = Client(pool)
    await client.until(3)
    assert client.messages[0]["status"] == 200
    assert {m["body"] for m in client.messages[1:]} == {COMMENT}
    exchange = begin(pool)
    exchange.put(Piece(0, "a", 1, finish="stop"))
    exchange.end()
    await client.answering
    assert client.texts == ["a"]


async def test_with_events_there_are_no_comments(pool: OneExchange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "IDLE_SECONDS", 5.0)
    client = Client(pool)
    await pool.begun.wait()
    exchange = begin(pool)
    for i in range(20):
        exchange.put(Piece(0, f"{i} ", 1))
        await client.until(i + 2)
    exchange.put(Piece(0, "", 0, finish="stop"))
    exchange.end()
    await client.answering
    assert COMMENT not in client.body
    assert len(client.texts) == 21


async def test_a_slow_reader_gets_fewer_and_larger_events(pool: OneExchange) -> None:
    """Everything that waits for the reader is one piece, for any amount of text that the engine has made."""
    client = Client(pool)
    await pool.begun.wait()
    exchange = begin(pool)
    exchange.put(Piece(0, "first ", 1))
    await client.until(2)
    client.reads.clear()
    for i in range(1000):
        exchange.put(Piece(0, f"{i} ", 1))
        if i % 100 == 0:
            await asyncio.sleep(0)
    exchange.put(Piece(0, "end", 1, finish="stop"))
    exchange.end()
    client.reads.set()
    await client.answering
    assert "".join(client.texts) == "first " + "".join(f"{i} " for i in range(1000)) + "end"
    assert len(client.texts) <= 4


@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_goes_away_cancels_its_request(pool: OneExchange, begun: bool) -> None:
    client = Client(pool)
    await pool.begun.wait()
    if begun:
        begin(pool).put(Piece(0, "a", 1))
        await client.until(2)
    client.gone.set()
    if begun:
        await client.answering
    else:
        with pytest.raises(ClientGone):
            await client.answering
    assert pool.exchange.over or not begun
    assert pool.cancelled == begun
