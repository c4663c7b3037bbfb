"""Without this test a slow prefix search could delay steps. The tests of the scheduler cover all else about slots."""

import time

import pytest

from run_gpt.engine.slots import Slots, token_array


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
