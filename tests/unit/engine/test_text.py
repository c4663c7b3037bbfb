"""Without these tests users could see half characters, or text after a stop sequence, or lose text before one."""

from hypothesis import given
from hypothesis import strategies as st

from run_gpt.engine.text import StopTexts, TextStream


def decode_bytes(ids):
    """Decode tokens that are single bytes, so that many characters take several tokens."""
    return bytes(ids).decode("utf-8", errors="replace")


def stream(text, stops=(), prompt=()):
    """Return all text shown, True when it was stopped, and the pieces."""
    out = TextStream(decode_bytes, prompt, stops)
    pieces = []
    for token in text.encode():
        piece, stopped = out.push(token)
        pieces.append(piece)
        if stopped:
            return "".join(pieces), True, pieces
    piece, stopped = out.finish()
    pieces.append(piece)
    return "".join(pieces), stopped, pieces


@given(st.text(), st.text(max_size=8))
def test_pieces_join_to_the_text(text, prompt):
    shown, _, pieces = stream(text, prompt=prompt.encode())
    assert shown == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@given(st.text(), st.text(max_size=8))
def test_a_whole_text_is_that_of_the_pieces(text, prompt):
    """Check that an answer is the same with and without streaming."""
    out = TextStream(decode_bytes, prompt.encode(), whole=True)
    assert [out.push(token) for token in text.encode()] == [("", False)] * len(text.encode())
    assert out.finish() == (text, False)


@given(st.text(alphabet="abé"), st.lists(st.text(alphabet="abé", min_size=1, max_size=4), min_size=1, max_size=3))
def test_a_whole_text_ends_at_the_same_stop_text(text, stops):
    pieces, whole = TextStream(decode_bytes, (), stops), TextStream(decode_bytes, (), stops, whole=True)
    for token in text.encode():
        assert pieces.push(token) == whole.push(token)
    assert pieces.finish() == whole.finish()


def test_a_token_is_decoded_about_once():
    """Check the number of decodings, which are the largest cost of a step beside the model."""
    decoded = []
    out = TextStream(lambda ids: decoded.append(ids) or decode_bytes(ids), b"prompt")
    assert "".join(out.push(ord("a") + i % 26)[0] for i in range(1000)) == ("abcdefghijklmnopqrstuvwxyz" * 39)[:1000]
    assert len(decoded) < 1200
    assert max(map(len, decoded)) <= 8


@given(st.binary())
def test_bytes_that_are_no_text_are_shown_in_the_end(data):
    out = TextStream(decode_bytes, ())
    shown = "".join(out.push(token)[0] for token in data) + out.finish()[0]
    assert shown == decode_bytes(data)


@given(st.text(alphabet="abé"), st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=3))
def test_the_first_stop_text_ends_the_text(text, stops):
    shown, stopped, _ = stream(text, stops)
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    assert stopped == bool(found)
    if not found:
        assert shown == text
    else:
        # A stop sequence is found once it is complete: the shown text ends where it begins.
        assert text.startswith(shown)
        assert any(text.startswith(stop, len(shown)) for stop in stops)
        assert not any(stop in shown for stop in stops)


def test_what_may_be_a_stop_text_is_held_back():
    stops = StopTexts(["###"])
    assert stops.push("a##") == ("a", False)
    assert stops.push("b") == ("##b", False)
    assert stops.push("#") == ("", False)
    assert stops.push("##c") == ("", True)


def test_an_answer_that_continues_a_word_keeps_its_space():
    """Check the space of an answer's first token: SentencePiece drops it only at the beginning of a text."""
    words = {1: "▁Hello", 2: "▁world"}

    def decode(ids):
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    assert TextStream(decode, [1]).push(2) == (" world", False)
