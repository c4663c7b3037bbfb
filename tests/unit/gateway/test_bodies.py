"""Bodies of HTTP requests: codings, and the bound on all bodies together."""

import gzip
import tracemalloc
import zlib
from typing import Any

import pytest
from starlette.requests import Request

from run_gpt.errors import InvalidRequest, QueueFull, RequestTooLarge, UnsupportedEncoding
from run_gpt.gateway.bodies import read_body
from run_gpt.gateway.encodings import MOST_MEMBERS, coding_of
from run_gpt.gateway.held import LARGE_BYTES, SMALL_BYTES, HeldBytes

LIMIT = 100_000
TEXT = b"hello " * 9000


async def read(body: bytes, coding: str | None = None, *, limit: int = LIMIT, held: HeldBytes | None = None) -> bytes:
    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    headers = [] if coding is None else [(b"content-encoding", coding.encode())]
    with (held or HeldBytes(10 * limit)).lease() as lease:
        return await read_body(Request({"type": "http", "headers": headers}, receive), limit, lease)


@pytest.mark.parametrize("text", [b"", b"{}", TEXT, b"x" * LIMIT])
async def test_each_coding_gives_the_body(text: bytes) -> None:
    assert await read(text) == await read(text, "identity") == text
    assert await read(gzip.compress(text), "gzip") == await read(gzip.compress(text), " X-GZIP ,identity") == text
    assert await read(zlib.compress(text), "deflate") == text
    assert await read(gzip.compress(text[:3]) + gzip.compress(text[3:]), "gzip") == text, "members follow each other"


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "deflate, gzip", "é", "x" * 9000])
def test_other_codings_are_refused_by_name(coding: str) -> None:
    with pytest.raises(UnsupportedEncoding, match="gzip, deflate") as raised:
        coding_of([coding])
    assert coding[:100] in raised.value.message
    assert len(raised.value.message) < 300


@pytest.mark.parametrize(
    ("body", "coding", "says"),
    [
        (TEXT, "gzip", "not gzip"),
        (zlib.compress(TEXT), "gzip", "not gzip"),
        (gzip.compress(TEXT, mtime=0), "deflate", "not deflate"),
        (gzip.compress(TEXT, mtime=0)[:-1], "gzip", "not whole"),
        (gzip.compress(TEXT, mtime=0)[:5], "gzip", "not whole"),
        (gzip.compress(TEXT, mtime=0)[:-5] + b"12345", "gzip", "not gzip"),
        (gzip.compress(TEXT, mtime=0) + b"more", "gzip", "not gzip"),
        (zlib.compress(TEXT) + b"more", "deflate", "follow"),
        (gzip.compress(b"", mtime=0) * (MOST_MEMBERS + 1), "gzip", "parts"),
    ],
)
async def test_a_malformed_coding_is_a_400(body: bytes, coding: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        await read(body, coding)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_bomb_is_refused_before_it_takes_memory(coding: str) -> None:
    bomb = (gzip.compress if coding == "gzip" else zlib.compress)(bytes(50_000_000))
    assert len(bomb) < LIMIT
    tracemalloc.start()
    try:
        with pytest.raises(RequestTooLarge, match=str(LIMIT)):
            await read(bomb, coding)
        assert tracemalloc.get_traced_memory()[1] < 20 * LIMIT
    finally:
        tracemalloc.stop()


def test_large_bodies_leave_room_for_small_ones() -> None:
    """Without it, slow uploads of large bodies could shut all others out."""
    held = HeldBytes(8 * LARGE_BYTES)
    with held.lease() as one, held.lease() as two, held.lease() as three:
        one.hold(4 * LARGE_BYTES)
        two.hold(2 * LARGE_BYTES)
        with pytest.raises(QueueFull, match="try again in 2 s"):
            three.hold(LARGE_BYTES)
        three.hold(LARGE_BYTES - 1)
        with pytest.raises(QueueFull):
            three.hold(LARGE_BYTES)
        for _ in range(1000):
            with held.lease() as small:
                small.hold(SMALL_BYTES)
        one.hold(1)
        three.hold(LARGE_BYTES)
    assert held.held == 0


async def test_a_body_counts_once_decoded_and_only_while_it_is_held() -> None:
    held = HeldBytes(LIMIT)
    for _ in range(3):
        assert await read(gzip.compress(bytes(LIMIT)), "gzip", held=held) == bytes(LIMIT)
    with held.lease() as other:
        other.hold(LIMIT - 1)
        with pytest.raises(QueueFull):
            await read(gzip.compress(bytes(LIMIT)), "gzip", held=held)
        with pytest.raises(QueueFull):
            await read(bytes(LIMIT), held=held)
        assert await read(b"{}", held=held) == b"{}"
    assert held.held == 0
