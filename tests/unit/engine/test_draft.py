"""Without these tests drafts could cost time and never be right. A wrong draft never changes an answer."""

import random
import time

import pytest

from run_gpt.engine.draft import FIRST_LENGTH, LONGEST, PAUSE, PromptLookup


def test_a_draft_is_what_followed_the_same_three_tokens_last_time():
    token_ids = [1, 2, 3, 50, 51, 9, 1, 2, 3, 60, 61, 62, 63, 64, 1, 2, 3]
    assert PromptLookup().draft(token_ids, 10) == (60, 61, 62, 63)
    assert PromptLookup().draft(token_ids, 2) == (60, 61)


def test_three_tokens_are_looked_up_before_two():
    token_ids = [1, 2, 3, 50, 8, 2, 3, 70, 1, 2, 3]
    assert PromptLookup().draft(token_ids, 1) == (50,)
    assert PromptLookup().draft([5, 2, 3, 70, 1, 2, 3], 1) == (70,)


def test_a_draft_that_reaches_the_end_goes_round_again():
    assert PromptLookup().draft([7, 8, 9, 7, 8, 9], 9) == (7, 8, 9, 7)
    assert PromptLookup().draft([5, 5, 5], 9) == (5, 5, 5, 5)


def test_text_that_does_not_repeat_has_no_draft():
    assert PromptLookup().draft(list(range(100)), 9) == ()
    assert PromptLookup().draft([1], 9) == ()
    assert PromptLookup().draft([1, 2, 1, 2], 0) == ()


def test_the_index_grows_with_the_answer():
    """Check that a draft equals that of a new index after any earlier drafts."""
    numbers = random.Random(0)
    token_ids, grown = [numbers.randrange(3) for _ in range(20)], PromptLookup()
    found = 0
    for _ in range(200):
        draft = grown.draft(token_ids, FIRST_LENGTH)
        assert draft == PromptLookup().draft(token_ids, FIRST_LENGTH)
        found += bool(draft)
        token_ids += [numbers.randrange(3) for _ in range(numbers.randrange(4))]
    assert found > 100


def test_right_drafts_grow_and_wrong_ones_shrink_and_pause():
    drafts, token_ids = PromptLookup(), [1, 2, 3] * 20
    lengths = []
    for _ in range(4):
        lengths.append(len(drafts.draft(token_ids, 99)))
        drafts.learn(token_ids, lengths[-1], lengths[-1])
    assert lengths == [FIRST_LENGTH, 2 * FIRST_LENGTH, LONGEST, LONGEST]
    drafts.learn(token_ids, LONGEST, 3)  # some were right: as before
    assert len(drafts.draft(token_ids, 99)) == LONGEST
    lengths = []
    while draft := drafts.draft(token_ids, 99):
        lengths.append(len(draft))
        drafts.learn(token_ids, len(draft), 0)
    assert lengths == [16, 8, 4, 2, 1]
    token_ids += [1, 2, 3] * (PAUSE // 3)
    assert drafts.draft(token_ids, 99) == ()
    token_ids += [1, 2, 3]
    assert len(drafts.draft(token_ids, 99)) == 1


@pytest.mark.alone
def test_a_long_history_is_not_read_again_at_each_step():
    drafts, token_ids = PromptLookup(), [random.Random(1).randrange(50) for _ in range(20_000)]
    drafts.draft(token_ids, 4)
    begin = time.perf_counter()
    for token in range(100):
        token_ids.append(token % 50)
        drafts.draft(token_ids, 4)
    assert time.perf_counter() - begin < 0.1  # a scan takes milliseconds each time
