"""Without these tests the log-probabilities of an answer would be those of a text that nobody sees."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from run_gpt.engine.request import TokenLogprob
from run_gpt.engine.shown import ShownTokens
from run_gpt.engine.text import TextStream

LETTERS = "ab \u00e9\U0001f600"

stops = st.lists(st.text(alphabet=LETTERS, min_size=1, max_size=3), min_size=1, max_size=2)


@st.composite
def chunks(draw):
    """Draw the bytes of tokens; some are, or have, parts of characters."""
    data = draw(st.text(alphabet=LETTERS, min_size=1, max_size=12)).encode()
    cuts = draw(st.sets(st.integers(0, len(data))))
    return [data[a:b] for a, b in pairwise(sorted({0, len(data), *cuts}))]


def answer(chunks, stops, *, ends=False, whole=False):
    """Return the text of an answer, and for each step its text so far and the tokens that it may show so far.

    The ids of the tokens are their places; one more has no text, and ends the answer if `ends`.
    """
    text = TextStream(lambda ids: b"".join(chunks[i] for i in ids).decode(errors="replace"), (), stops, whole=whole)
    held, shown, so_far, listed = ShownTokens(text), "", [], []
    for place in range(len(chunks)):
        new, stopped = text.push(place)
        last = place == len(chunks) - 1 and not ends
        shown += new + ("" if stopped or not last else text.finish()[0])
        listed += held.add(TokenLogprob(place, -1.0), over=stopped or last, ends=False)
        so_far.append((shown, list(listed)))
        if stopped or last:
            return shown, so_far
    shown += text.finish()[0]
    listed += held.add(TokenLogprob(len(chunks), -9.0), over=True, ends=True)
    return shown, [*so_far, (shown, listed)]


def texts(chunks, listed):
    """Return the texts of the tokens as far as they are shown."""
    whole = b"".join(chunks[token.token_id] for token in listed if token.shown is None)
    parts = [token for token in listed if token.shown]
    assert len({token.shown for token in parts}) < 2  # one group is cut at most
    return whole + b"".join(chunks[token.token_id] for token in parts)[: parts[0].shown if parts else 0]


@given(chunks(), stops | st.just([]), st.booleans(), st.booleans())
def test_texts_of_the_tokens_join_to_the_text(chunks, stops, ends, whole):
    shown, so_far = answer(chunks, stops, ends=ends, whole=whole)
    listed = so_far[-1][1]
    assert texts(chunks, listed).decode() == shown
    assert [token.token_id for token in listed] == list(range(len(so_far)))  # those that are hidden are there, too


@given(chunks(), stops)
def test_a_stream_never_shows_a_token_before_its_text(chunks, stops):
    _, so_far = answer(chunks, stops, ends=True)
    for shown, listed in so_far[:-1]:
        assert shown.encode().startswith(texts(chunks, listed))
    order = [2 if token.shown is None else min(token.shown, 1) for token in so_far[-1][1]]
    assert order == sorted(order, reverse=True)  # what is hidden is the end


def test_a_token_that_is_shown_in_part_has_that_part():
    shown, so_far = answer([b"a", b" ab", b"b"], ["b"], ends=True)
    assert shown == "a a"
    assert [token.shown for token in so_far[-1][1]] == [None, 2]


def test_a_stop_text_may_begin_in_a_token_that_has_a_part_of_its_character():
    """A space and the beginning of an emoji are one token in many vocabularies."""
    shown, so_far = answer([b"a", b" \xf0\x9f", b"\x98\x80", b"b"], ["\U0001f600b"], ends=True)
    assert shown == "a "
    assert [token.shown for token in so_far[-1][1]] == [None, 1, 1, 0]


def test_without_stop_texts_nothing_is_held_back():
    _, so_far = answer([b"\xc3", b"\xa9", b"a"], [], ends=True)
    assert [len(listed) for _, listed in so_far] == [1, 2, 3, 4]
    assert so_far[-1][1][-1].shown == 0
