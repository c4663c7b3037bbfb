"""Server-sent events, cut by the network into any pieces. No text may be lost or cut."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from run_gpt.client.sse import EventDecoder

STREAM = (
    b'\xef\xbb\xbf: a comment\r\nevent: x\r\ndata: {"text": "\xe2\x80\xa8 \xc2\x85 \x0b"}\r\nid: 3\r\n\r\n'
    b"data:one\ndata: two\ndata:  three\n\n\n\nevent: empty\n\ndata\rdata\r\rdata: last\r\n\r\ndata: not ended\n"
)
EVENTS = [b'{"text": "\xe2\x80\xa8 \xc2\x85 \x0b"}', b"one\ntwo\n three", b"\n", b"last"]


def _events(pieces: list[bytes]) -> list[bytes]:
    decoder = EventDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


def test_every_kind_of_line_end():
    assert _events([STREAM]) == EVENTS
    assert _events([STREAM[i : i + 1] for i in range(len(STREAM))]) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_any_cut(cuts):
    bounds = [0, *sorted(cuts), len(STREAM)]
    assert _events([STREAM[a:b] for a, b in pairwise(bounds)]) == EVENTS
