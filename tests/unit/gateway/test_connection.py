"""HTTP connections as a hostile or a slow client uses them: raw bytes against uvicorn in this process."""

import asyncio
import errno
import json
import logging
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from run_gpt.gateway import connection as connections
from run_gpt.gateway import listening
from run_gpt.gateway.connection import Connection
from run_gpt.gateway.listening import Listener, raise_file_limit
from run_gpt.gateway.open_connections import OpenConnections
from run_gpt.gateway.pipelining import MAX_PIPELINED

GET = b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: localhost\r\n"


class App:
    """An app that reads the body and answers with its length, when the test lets it."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.begun = asyncio.Event()
        self.gone = asyncio.Event()
        self.read_body = True
        self.drop_all = True
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        self.begun.set()
        length, more = 0, self.read_body
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone.set()
                return
            length += len(message.get("body", b""))
            more = message.get("more_body", False)
        waiting = asyncio.ensure_future(self.go.wait())
        if not self.go.is_set():
            leaving = asyncio.ensure_future(receive())
            await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
            if leaving.done():
                self.gone.set()
            leaving.cancel()
        waiting.cancel()
        body = str(length).encode()
        headers = [(b"content-length", b"%d" % len(body))]
        if not self.read_body:
            if self.drop_all:
                scope["state"][connections.DROP_ALL] = True
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(app: Any, limit: int = 64, keep_alive: float = 5.0) -> AsyncIterator[Any]:
    config = Config(app=app, http=Connection, lifespan="off", ws="none", log_config=None, access_log=False)
    config.timeout_keep_alive = keep_alive  # type: ignore[assignment]
    config.load()
    state, all_of_them = ServerState(), OpenConnections(limit)
    listener_socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port = listener_socket.getsockname()[1]
    listener = Listener(listener_socket, lambda sock: Connection(all_of_them, config, state, sock), lambda: None)

    async def check() -> None:
        while True:
            all_of_them.check(asyncio.get_running_loop().time())
            await asyncio.sleep(0.01)

    checking = asyncio.create_task(check())
    try:
        yield SimpleNamespace(port=port, connections=all_of_them, listener=listener)
    finally:
        checking.cancel()
        listener.close()
        for connection in list(all_of_them._all):
            connection.transport.abort()
        for task in state.tasks:
            task.cancel()
        await asyncio.gather(*state.tasks, return_exceptions=True)


@pytest.fixture
async def app() -> App:
    return App()


async def answer(port: int, *sent: bytes, end: bool = False) -> bytes:
    """Send the pieces and return all that comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(20):
        for piece in sent:
            writer.write(piece)
            await writer.drain()
        if end:
            writer.write_eof()
        received = await reader.read()
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return received


def error_of(received: bytes) -> dict[str, Any]:
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


REFUSED = {
    "LF after the line": (b"GET /x HTTP/1.1\nHost: x\r\n\r\n", 400),
    "LF only": (b"GET /x HTTP/1.1\nHost: x\n\n", 400),
    "LF after a header": (b"GET /x HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400),
    "LF at the end": (b"GET /x HTTP/1.1\r\nHost: x\r\n\n", 400),
    "CR alone": (b"GET /x HTTP/1.1\r\nHost: x\r\nA: b\rC: d\r\n\r\n", 400),
    "LF in chunks": (POST + b"Transfer-Encoding: chunked\r\n\r\n1\na\n0\n\n", 400),
    "length and chunks": (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunks and length": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na", 400),
    "a list of lengths": (POST + b"Content-Length: 1, 1\r\n\r\na", 400),
    "a sign": (POST + b"Content-Length: +1\r\n\r\na", 400),
    "a huge length": (POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\na", 400),
    "other encodings": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    "an odd encoding": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "two encodings": (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", 400),
    "chunks in 1.0": (b"POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "a space before a colon": (b"GET /x HTTP/1.1\r\nHost : x\r\n\r\n", 400),
    "a folded header": (b"GET /x HTTP/1.1\r\nHost: x\r\n y\r\n\r\n", 400),
    "a NUL": (b"GET /x HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n", 400),
    "HTTP/3.7": (b"GET /x HTTP/3.7\r\nHost: x\r\n\r\n", 400),
    "HTTP/2.0": (b"GET /x HTTP/2.0\r\nHost: x\r\n\r\n", 505),
    "HTTP/0.9": (b"GET /x\r\n\r\n", 505),
    "HTTP/2's preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "no method": (b"NONSENSE /x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "CONNECT": (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a user in the URL": (b"GET http://a@x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "another scheme": (b"GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a bad URL": (b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "many headers": (b"GET /x HTTP/1.1\r\n" + b"".join(b"a%d: b\r\n" % i for i in range(200)) + b"\r\n", 431),
    "a long header": (b"GET /x HTTP/1.1\r\nA: " + b"b" * 100_000 + b"\r\n\r\n", 431),
    "a long URL": (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
    "a head without an end": (b"GET /x HTTP/1.1\r\nA: " + b"b" * 5_000_000, 431),
}


@pytest.mark.parametrize("kind", REFUSED)
async def test_a_request_of_doubtful_form_is_refused_and_its_connection_closed(app: App, kind: str) -> None:
    """Two servers that read such a request differently can be made to see different requests."""
    sent, status = REFUSED[kind]
    async with serving(app) as server:
        received = await answer(server.port, sent)
        assert received.startswith(b"HTTP/1.1 %d " % status), received
        error_of(received)
        assert received.count(b"\r\n\r\n") == 1


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_requests_in_pieces_are_whole(app: App, size: int) -> None:
    request = (
        POST
        + b"Content-Length: 11\r\n\r\nhello world"
        + POST
        + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    )
    request += b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    async with serving(app) as server:
        received = await answer(server.port, *(request[i : i + size] for i in range(0, len(request), size)))
    assert [part.rpartition(b"\r\n")[2] for part in received.split(b"HTTP/1.1 200 OK")[1:]] == [b"11", b"3", b"0"]


async def test_the_host_of_an_absolute_url_is_the_host_of_the_request(app: App) -> None:
    """Otherwise a request could name one host to the check and another to its routes."""
    async with serving(app) as server:
        await answer(
            server.port, b"GET http://evil.example:80/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
    assert [value for name, value in app.scopes[0]["headers"] if name == b"host"] == [b"evil.example:80"]
    assert app.scopes[0]["path"] == "/x"


async def test_an_offer_to_upgrade_is_ignored(app: App) -> None:
    """curl --http2 sends one with each request."""
    upgrade = b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    async with serving(app) as server:
        assert (await answer(server.port, upgrade)).startswith(b"HTTP/1.1 200")


async def test_a_client_that_sends_nothing_is_closed_in_time(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.1)
    monkeypatch.setattr(connections, "BODY_SECONDS", 0.1)
    async with serving(app) as server:
        assert await answer(server.port) == b""
        for half in (b"G", GET[:-2], GET[:-1]):
            received = await answer(server.port, half)
            assert received.startswith(b"HTTP/1.1 408 ")
            assert error_of(received)["code"] == "deadline_exceeded"
        for half in (b"Content-Length: 5\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc"):
            app.gone.clear()
            assert (await answer(server.port, POST + half)).startswith(b"HTTP/1.1 408 ")
            async with asyncio.timeout(10):
                await app.gone.wait()


async def test_a_client_that_drips_is_closed_too(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte starts no new time."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(connections, "BODY_SECONDS", 0.3)

    async def drip(first: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(first)
        reading = asyncio.ensure_future(reader.read())
        async with asyncio.timeout(20):
            while not reading.done():
                writer.write(b"a")
                await asyncio.sleep(0.02)
        writer.close()
        return reading.result()

    async with serving(app) as server:
        assert (await drip(b"GET /x HTTP/1.1\r\nA: ")).startswith(b"HTTP/1.1 408 ")
        assert (await drip(POST + b"Content-Length: 9999\r\n\r\n")).startswith(b"HTTP/1.1 408 ")


async def test_a_long_body_and_a_long_answer_take_their_time(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(connections, "BODY_SECONDS", 0.2)
    app.go.clear()
    async with serving(app) as server:
        body = b"x" * 1_000_000  # at LEAST_RATE a minute
        asking = asyncio.create_task(
            answer(server.port, POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body), body)
        )
        await asyncio.sleep(0.6)  # longer than all deadlines, while the server works
        assert not asking.done()
        app.go.set()
        assert (await asking).endswith(b"\r\n1000000")


async def test_a_refused_body_is_dropped_and_its_client_reads_why(app: App) -> None:
    """A client that sends its whole body first got a reset instead of the answer."""
    app.read_body = False
    async with serving(app) as server:
        body = b"x" * 40_000_000
        received = await answer(server.port, POST + b"Content-Length: %d\r\n\r\n" % len(body), body)
        assert received.startswith(b"HTTP/1.1 200 OK")
        async with asyncio.timeout(10):
            while server.connections._all:
                await asyncio.sleep(0.01)  # between two polls of the condition


async def test_a_body_that_nobody_wants_is_dropped_within_a_bound(app: App) -> None:
    """Clients without a key must not be able to keep a server reading."""
    app.read_body = app.drop_all = False
    async with serving(app) as server:
        with pytest.raises(ConnectionError):
            await answer(server.port, POST + b"Content-Length: 40000000\r\n\r\n", b"x" * 40_000_000)


async def test_a_client_that_has_reset_its_connection_is_no_failure(
    app: App, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a refused connection cannot be sent then: that was a traceback for each such client."""
    app.read_body = False
    resets = []

    def reset(self: Any) -> None:
        resets.append(self)
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr(asyncio.selector_events._SelectorSocketTransport, "write_eof", reset)
    async with serving(app) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(POST + b"Content-Length: 100\r\n\r\n")
        async with asyncio.timeout(10):
            while server.connections._all or not resets:
                await asyncio.sleep(0.01)  # between two polls of the condition
        writer.close()
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


async def test_a_client_that_never_reads_its_refusal_is_cut(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CLOSE_SECONDS", 0.2)
    app.read_body = False
    async with serving(app) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(POST + b"Content-Length: 100\r\n\r\n")
        async with asyncio.timeout(10):
            await app.begun.wait()
            while server.connections._all:
                await asyncio.sleep(0.01)  # between two polls of the condition
        writer.close()


@pytest.mark.parametrize("seconds", [0.0, 0.3])
async def test_a_half_closed_request_is_answered(app: App, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(connections, "GONE_SECONDS", 0.1)
    app.go.clear()
    async with serving(app) as server:
        asking = asyncio.create_task(answer(server.port, GET + GET, end=True))
        await app.begun.wait()
        await asyncio.sleep(seconds)  # shorter and longer than the time to the probe
        app.go.set()
        received = (await asking).replace(connections.CONTINUE, b"")
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert not app.gone.is_set()


async def test_a_closed_connection_ends_its_request_soon(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end of the connection looks half-closed, until something is sent to it."""
    app.go.clear()
    async with serving(app) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(GET)
        await app.begun.wait()
        writer.close()
        async with asyncio.timeout(5):
            await app.gone.wait()
        assert not server.connections._all


async def test_a_half_sent_request_ends_with_its_connection(app: App) -> None:
    async with serving(app) as server:
        assert await answer(server.port, POST + b"Content-Length: 9\r\n\r\nabc", end=True) == b""
        async with asyncio.timeout(5):
            await app.gone.wait()


async def test_silent_connections_make_room_for_others(app: App) -> None:
    async with serving(app, limit=20) as server:
        silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(60)]
        half = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(60)]
        for _, writer in half:
            writer.write(POST + b"Content-Length: 9\r\n\r\nabc")
        received = await answer(server.port, GET.replace(b"Host", b"Connection: close\r\nHost"))
        assert received.startswith(b"HTTP/1.1 200 OK")
        assert len(server.connections._all) <= 10, "half of all are for one address"
        for _, writer in silent + half:
            writer.close()


async def test_requests_in_progress_are_not_closed_for_others(app: App) -> None:
    app.go.clear()
    async with serving(app, limit=8) as server:
        asking = [asyncio.create_task(answer(server.port, GET, end=True)) for _ in range(4)]
        async with asyncio.timeout(10):
            while len(app.scopes) < 4:
                await asyncio.sleep(0.01)  # between two polls of the condition
        received = await answer(server.port, GET)
        assert received.startswith(b"HTTP/1.1 503 ")
        assert error_of(received)["code"] == "unavailable"
        app.go.set()
        assert all(b"200 OK" in one for one in await asyncio.gather(*asking))


@pytest.mark.parametrize("end", [False, True])
async def test_pipelined_requests_are_few_at_a_time_and_all_are_answered(app: App, end: bool) -> None:
    """10,000 small ones fit in one packet's read."""
    app.go.clear()
    last = GET if end else GET.replace(b"Host", b"Connection: close\r\nHost")
    body = b"a" + b"\r\n\r\n" * 500
    post = POST + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    async with serving(app) as server:
        asking = asyncio.create_task(answer(server.port, GET * 300, post, GET * 300, post, post, last, end=end))
        await app.begun.wait()
        (connection,) = server.connections._all
        while not connection.flow.rest:
            await asyncio.sleep(0.01)  # between two polls of the condition
        assert len(connection.pipeline) <= MAX_PIPELINED + 1
        app.go.set()
        received = (await asking).replace(connections.CONTINUE, b"")
    answers = [int(part.rpartition(b"\r\n\r\n")[2]) for part in received.split(b"HTTP/1.1 200 OK")[1:]]
    assert answers == [0] * 300 + [len(body)] + [0] * 300 + [len(body)] * 2 + [0]


async def test_requests_behind_a_slow_one_are_answered(app: App) -> None:
    """uvicorn's timer for idle connections ran on while the next request was answered, and closed its connection."""
    slow = GET.replace(b"/x", b"/slow")

    async def take_turns() -> None:
        for count in range(1, 4):
            while len(app.scopes) < count:
                await asyncio.sleep(0.01)  # between two polls of the condition
            await asyncio.sleep(0.15)  # longer than the connection may be idle
            app.go.set()
            app.go.clear()

    app.go.clear()
    async with serving(app, keep_alive=0.05) as server:
        turns = asyncio.create_task(take_turns())
        received = await answer(server.port, slow * 3)
        await turns
    assert received.count(b"HTTP/1.1 200 OK") == 3


async def test_an_idle_connection_is_closed_in_time_and_not_before(app: App) -> None:
    async with serving(app, keep_alive=1000) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        async with asyncio.timeout(20):
            writer.write(GET)
            await reader.readuntil(b"\r\n\r\n0")
            (connection,) = server.connections._all
            while connection._deadline is None:
                await asyncio.sleep(0.01)  # between two polls of the condition
            now = asyncio.get_running_loop().time()
            assert connections.HEAD_SECONDS < connection._deadline - now <= 1000
            server.connections.check(now + 1001)
            assert await reader.read() == b""
        writer.close()


async def test_an_answer_reaches_a_client_that_offers_to_upgrade_and_ends_its_side(app: App) -> None:
    """Nothing is read after the offer; the end of the client's side closed the connection."""
    app.go.clear()
    upgrade = GET.replace(b"Host", b"Connection: Upgrade\r\nUpgrade: h2c\r\nHost")
    async with serving(app) as server:
        asking = asyncio.create_task(answer(server.port, upgrade, end=True))
        await app.begun.wait()
        await asyncio.sleep(0.1)
        app.go.set()
        received = (await asking).replace(connections.CONTINUE, b"")
    assert received.startswith(b"HTTP/1.1 200 OK")


async def test_what_follows_a_request_to_close_is_not_answered(app: App) -> None:
    close = GET.replace(b"Host", b"Connection: close\r\nHost")
    async with serving(app) as server:
        received = await answer(server.port, GET + close + GET + POST + b"Content-Length: 9\r\n\r\nabc", end=True)
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert len(app.scopes) == 2


@pytest.mark.parametrize(
    ("target", "host", "path", "query"),
    [
        (b"http://a.example", b"a.example", "/", b""),
        (b"http://a.example?x=1", b"a.example", "/", b"x=1"),
        (b"HTTP://a.example:8080/v1/models?x=/y", b"a.example:8080", "/v1/models", b"x=/y"),
        (b"http://[::1]:80/a%20b", b"[::1]:80", "/a b", b""),
        (b"//evil.example/x", b"localhost", "//evil.example/x", b""),
    ],
)
async def test_a_target_with_a_host_is_one_without_it(
    app: App, target: bytes, host: bytes, path: str, query: bytes
) -> None:
    async with serving(app) as server:
        await answer(server.port, b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % target)
    (scope,) = app.scopes
    assert [value for name, value in scope["headers"] if name == b"host"] == [host]
    assert (scope["path"], scope["query_string"]) == (path, query)


@pytest.mark.parametrize(("version", "hosts", "left"), [(b"1.1", 0, 0), (b"1.1", 2, 2), (b"1.0", 0, 1), (b"1.0", 2, 2)])
async def test_a_target_with_a_host_hides_no_wrong_header(app: App, version: bytes, hosts: int, left: int) -> None:
    async with serving(app) as server:
        head = b"GET http://a.example/x HTTP/%b\r\nConnection: close\r\n" % version
        await answer(server.port, head + b"Host: localhost\r\n" * hosts + b"\r\n")
    (scope,) = app.scopes
    assert len([value for name, value in scope["headers"] if name == b"host"]) == left


async def test_an_answer_in_progress_comes_before_the_error_of_the_next_request(app: App) -> None:
    app.go.clear()
    async with serving(app) as server:
        asking = asyncio.create_task(answer(server.port, GET, b"nonsense\r\n\r\n"))
        await app.begun.wait()
        app.go.set()
        received = await asking
    assert received.startswith(b"HTTP/1.1 200 OK")


async def test_a_full_file_table_is_one_line_and_passes(
    app: App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncio wrote thousands of tracebacks a second."""
    monkeypatch.setattr(listening, "WAIT_SECONDS", 0.01)
    async with serving(app) as server:
        real, failures = server.listener._socket, 0

        class Full:
            def accept(self) -> Any:
                nonlocal failures
                failures += 1
                if failures <= 20:
                    raise OSError(errno.EMFILE, "Too many open files")
                return real.accept()

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

        server.listener._socket = Full()
        with caplog.at_level(logging.WARNING):
            received = await answer(server.port, GET.replace(b"Host", b"Connection: close\r\nHost"))
        assert received.startswith(b"HTTP/1.1 200 OK")
    lines = [record.getMessage() for record in caplog.records]
    (line,) = [line for line in lines if "connection" in line]
    assert "on the HTTP port: Too many open files (1 times so far)" in line


@pytest.mark.parametrize(
    ("limits", "soft", "connections_of_it"),
    [
        ((1024, 1_048_576), 8704, 4096),
        ((1024, 2048), 2048, 896),
        ((1024, resource.RLIM_INFINITY), 8704, 4096),
        ((65_536, 65_536), 65_536, 4096),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), resource.RLIM_INFINITY, 4096),
        ((100, 100), 100, 64),
    ],
)
def test_the_file_limit_is_raised_and_bounds_the_connections(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], soft: int, connections_of_it: int
) -> None:
    now = list(limits)

    def set_limit(what: int, new: tuple[int, int]) -> None:
        now[:] = new

    monkeypatch.setattr(resource, "getrlimit", lambda what: tuple(now))
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    assert raise_file_limit() == connections_of_it
    assert now == [soft, limits[1]]
