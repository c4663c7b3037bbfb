"""Without these tests broken streams could count as complete, or complete ones as broken, by how bytes are split."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from run_gpt.bench.connection import Connections
from run_gpt.bench.response import BadAnswer, Response
from run_gpt.client.endpoint import Endpoint

BODY = b'data: {"a": "\xc3\xa9"}\n\ndata: [DONE]\n\n'
CHUNKED = (
    b"HTTP/1.1 100 Continue\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
    b'5;name="a"\r\ndata:\r\n10\r\n {"a": "\xc3\xa9"}\n\nda\r\nc \r\nta: [DONE]\n\n\r\n'
    b"0\r\nTrailer: x\r\n\r\n"
)
COUNTED = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nConnection: keep-alive\r\n\r\n%s" % (len(BODY), BODY)


def read(*pieces: bytes) -> Response:
    """Parse a response that arrives in these pieces, one second apart."""
    response = Response([])
    for at, piece in enumerate(pieces):
        response.feed(float(at), piece)
    return response


def body(response: Response) -> bytes:
    return b"".join(piece for _, piece in response.pieces)


@pytest.mark.parametrize("answer", [CHUNKED, COUNTED])
def test_an_answer_is_the_same_wherever_its_bytes_are_split(answer: bytes) -> None:
    for at in range(1, len(answer)):
        response = read(answer[:at], answer[at:])
        assert (response.status, body(response), response.reusable) == (200, BODY, True), at
        assert response.ended == 1.0
    response = read(*(answer[i : i + 1] for i in range(len(answer))))
    assert (body(response), response.ended) == (BODY, len(answer) - 1)


@pytest.mark.parametrize("answer", [CHUNKED, COUNTED])
def test_an_answer_that_is_cut_anywhere_is_not_complete(answer: bytes) -> None:
    for at in range(len(answer)):
        response = read(answer[:at])
        response.close(1.0)
        assert response.ended is None, at


def test_pieces_have_the_times_at_which_they_came() -> None:
    """This includes parts of a chunk: an event is not late because the next one is."""
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    response = read(head + b"6\r\nab", b"cd", b"ef\r\n", b"0\r\n\r\n")
    assert response.pieces == [(0.0, b"ab"), (1.0, b"cd"), (2.0, b"ef")]
    assert response.ended == 3.0


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    response = read(b"HTTP/1.0 200 OK\r\n\r\nab", b"cd")
    assert response.ended is None
    response.close(2.0)
    assert (body(response), response.ended, response.reusable) == (b"abcd", 2.0, False)


@pytest.mark.parametrize("status", [b"204 No Content", b"200 OK\r\ncontent-length: 0"])
def test_an_answer_without_a_body_is_complete(status: bytes) -> None:
    assert read(b"HTTP/1.1 " + status + b"\r\n\r\n").ended == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc",
        b"x" * 70_000,
    ],
)
def test_what_is_no_http_is_refused(answer: bytes) -> None:
    with pytest.raises(BadAnswer):
        read(answer)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_connection_is_taken_again_unless_the_server_closes_it(
    scripted: Callable[..., Any], loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """This holds on uvloop as well, which jina and uvicorn use as the event loop of their process."""

    async def ask(url: str, path: bytes, count: int) -> int:
        """Send `count` requests one after the other, and return the number of connections."""
        connections = Connections(Endpoint.parse(url))
        seen = set()
        for _ in range(count):
            response = Response([])
            await connections.ask(b"GET " + path + b" HTTP/1.1\r\n\r\n", response)
            assert response.status == 200
            seen.update(connections._free)
        connections.close()
        return len(seen)

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(ask(scripted().url, b"/v1/models", 3)) == 1
