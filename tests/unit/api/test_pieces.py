"""Merging of pieces that wait for a slow reader. It must not lose, repeat or reorder anything."""

import copy

from hypothesis import given
from hypothesis import strategies as st

from run_gpt.api.pieces import CallPiece, Head, Pending, Piece, Whole

calls = st.lists(
    st.builds(CallPiece, index=st.integers(0, 2), arguments=st.text(max_size=3), id=st.sampled_from([None, "call"])),
    max_size=2,
)
pieces = st.builds(
    Piece,
    index=st.integers(0, 2),
    text=st.text(max_size=4),
    tokens=st.integers(0, 3),
    calls=calls,
    reasoning=st.text(max_size=3),
    logprobs=st.none() | st.lists(st.binary(min_size=1, max_size=9), max_size=3),
)


def told(some: list[Piece]) -> list[object]:
    """Return the contents of some pieces, sequence by sequence."""
    said: list[object] = []
    for index in range(3):
        own = [piece for piece in some if piece.index == index]
        arguments: dict[int, str] = {}
        for call in (call for piece in own for call in piece.calls):
            arguments[call.index] = arguments.get(call.index, "") + f"<{call.id}>" * (call.id is not None)
            arguments[call.index] += call.arguments
        tokens = [token for piece in own for token in piece.logprobs or ()]
        thought = "".join(piece.reasoning for piece in own)
        said.append(
            (thought, "".join(piece.text for piece in own), sum(piece.tokens for piece in own), arguments, tokens)
        )
    return said


@given(st.lists(pieces), st.lists(st.booleans()))
def test_merged_pieces_say_what_the_single_ones_do(sent: list[Piece], taken: list[bool]) -> None:
    pending, got = Pending(), []
    for i, piece in enumerate(sent):
        pending.put(copy.deepcopy(piece))
        if i < len(taken) and taken[i]:
            got += pending.take()
    assert len(rest := pending.take()) <= 3, "one for each sequence"
    assert told([*got, *rest]) == told(sent)  # type: ignore[list-item]
    assert not pending


def test_a_head_comes_before_its_pieces() -> None:
    pending, head = Pending(), Head("id", 1, "m", 3)
    pending.put(head)
    pending.put(Piece(0, "a", 1))
    assert pending.take() == [head, Piece(0, "a", 1)]
    assert pending.take() == []


def test_a_split_piece_says_the_same() -> None:
    parts = [b"12345678", b"1234", b"1", b"1234567890", b"12"]
    whole = Piece(1, "text", 5, "stop", cached=3, calls=[CallPiece(0, "x")], logprobs=list(parts), timings={"a": 1.0})
    pieces = copy.deepcopy(whole).split(10)
    assert [piece.logprobs for piece in pieces] == [parts[:1], parts[1:3], parts[3:4], parts[4:]]
    assert [piece.finish for piece in pieces] == [None, None, None, "stop"]
    first = pieces[0]
    for piece in pieces[1:]:
        first.add(piece)
    assert first == whole
    assert whole.split(1000) == [whole]
    assert Piece(0, "a", 1).split(1) == [Piece(0, "a", 1)]


def test_a_split_answer_says_the_same() -> None:
    whole = Whole(b"{}", [[b"1234", b"12"], [], [b"123456789", b"1", b"1"]])
    answers = whole.split(6)
    assert [one.json for one in answers] == [b"{}", b"", b""]
    assert [one.parts for one in answers] == [
        [[b"1234", b"12"], [], []],
        [[], [], [b"123456789"]],
        [[], [], [b"1", b"1"]],
    ]
    assert whole.split(1000) == [whole]
    assert Whole(b"{}").split(1) == [Whole(b"{}")]
