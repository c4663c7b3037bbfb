"""Without these tests a slow prefix search could delay steps, and a prefix could be reused after it was overwritten.

The tests of the scheduler cover all else about slots.
"""

import time

import pytest

from run_gpt.engine.slots import Copy, Ring, Slots, token_array


@pytest.mark.alone
def test_64_slots_of_8000_tokens_are_compared_in_no_time():
    slots = Slots(64, None, keep=True)
    for i in range(64):
        # Each slot shares all but its end with the others: the worst case.
        slot = slots.take(token_array([*range(7900 + i), *[9] * (100 - i)]), 8001)
        slot.length = 8000
    for slot in slots.all[:63]:
        slots.free(slot)
    slots.free(slots.all[63])
    prompt = token_array([*range(7950), 11, 12])
    begin = time.perf_counter()
    source, length = slots._longest_prefix(prompt, None)
    taken = time.perf_counter() - begin
    assert length == 7950
    assert source.number >= 50
    assert taken < 0.02  # a step of a small model; token by token in Python it is twenty times as much


RING = Ring(size=100, back=60, layers=3, all_layers=4)  # a window of 41 tokens


def held(written, length=None, ring=RING):
    """Return slots; a sequence has written so many tokens to the first one, which holds `length` of them."""
    slots = Slots(2, None, keep=True, ring=ring)
    slot = slots.take(token_array(range(1000)), 1000)
    slot.written, slot.length = written, written if length is None else length
    slots.free(slot)
    return slots


@pytest.mark.parametrize(
    ("written", "shared", "reused"),
    [
        (100, 10, 10),  # nothing is overwritten yet
        (101, 41, 41),
        (101, 40, 0),
        (500, 440, 440),
        (500, 439, 0),
        (500, 500, 500),
    ],
)
def test_a_prefix_is_lent_while_its_last_window_is_in_the_ring(written, shared, reused):
    slots = held(written)
    slot = slots.take(token_array([*range(shared), 5000, 5001]), 600)
    assert slot.length == reused
    assert slots.copies == ([Copy(0, 1, reused)] if 0 < reused < written else [])
    slots.check()


def test_a_copy_and_what_is_taken_in_place_lend_no_more_than_the_first_slot():
    """Check it after a rejected draft too, whose end was written and does not count."""
    slots = held(500, length=480)
    copied = slots.take(token_array([*range(450), 5000]), 600)
    assert (copied.length, copied.written) == (450, 500)
    slots.copies.clear()
    slots.free(copied)
    own = slots.take(token_array([*range(480), 6000]), 600)
    assert (own.length, own.written, slots.copies) == (480, 500, [])
    slots.free(own)
    assert slots.take(token_array([*range(439), 7000]), 600).length == 0
    slots.check()


def test_the_longest_prefix_is_that_of_a_slot_which_can_lend_it():
    slots = held(500)
    other = slots.take(token_array([*range(90), 5000]), 100, reuse=False)
    other.length = other.written = 91
    slots.free(other)
    assert slots.take(token_array([*range(400), 6000]), 600).length == 90


def test_an_emptied_slot_lends_again():
    slots = held(500)
    for _ in range(2):
        slot = slots.take(token_array(range(5000, 5090)), 100)
        slot.length = slot.written = 90
    slots.check()
    assert [slot.written for slot in slots.all] == [90, 90]


def test_a_token_beyond_the_ring_takes_memory_in_the_other_layers_only():
    assert [RING.cost(tokens) for tokens in (0, 1, 100, 101, 104, 500)] == [0, 1, 100, 101, 101, 200]
    assert [RING.longest(cost) for cost in (1, 99, 100, 101, 200)] == [1, 99, 100, 104, 500]
    alike = Ring(size=100, back=60, layers=4, all_layers=4)
    assert (alike.cost(10**6), alike.longest(99), alike.longest(100)) == (100, 99, None)
    slots = Slots(3, 300, keep=True, ring=RING)
    assert slots.longest == 900
    first = slots.take(token_array(range(8)), 500)
    assert slots.tokens == 200
    assert slots.take(token_array(range(8)), 101) is None
    slots.take(token_array(range(8)), 100)
    assert slots.tokens == 300
    slots.free(first)
    slots.check()
