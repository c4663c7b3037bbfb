"""Without this test a sequence could read keys and values of another, or memory that was never written."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from run_gpt.engine.runners.blocks import BlockCache

SLOTS = 4


@given(st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(0, SLOTS - 1), st.integers(0, 30)), max_size=40))
def test_each_slot_reads_what_was_written_for_it(actions):
    cache = BlockCache(2, SLOTS, 1, 1, 4, torch.empty(0))
    held = [[] for _ in range(SLOTS)]
    written = 0
    for slot, other, length in actions:
        if other != slot and 0 < length <= len(held[other]):
            cache.copy(other, slot, length)
            held[slot] = held[other][:length]
        else:
            start = min(length, len(held[slot])) // 2
            cache.hold(slot, length)
            held[slot] = held[slot][:length]
            if length > start:  # overwrite the second half, or write the new tokens
                new = [written + i for i in range(length - start)]
                written += len(new)
                for layer, pair in enumerate(cache.layers):
                    for which, tensor in enumerate(pair):
                        values = torch.tensor(new, dtype=torch.float32) + 10_000 * (2 * layer + which)
                        tensor[cache.places(slot, length, start)] = values[:, None, None]
                held[slot][start:] = new
        for layer, pair in enumerate(cache.layers):
            for which, tensor in enumerate(pair):
                read = tensor - 10_000 * (2 * layer + which)
                full = {i: len(row) for i, row in enumerate(held) if row}
                for i, count in full.items():
                    assert read[cache.places(i, count)].flatten().tolist() == held[i]
                if full:
                    places, mask = cache.table(full)
                    for row, i in enumerate(full):
                        assert read[places[row]][mask[row]].flatten().tolist() == held[i]
                        assert set(read[places[row]].flatten().tolist()) == set(held[i])  # nothing else, even hidden


def test_what_was_given_back_is_used_again():
    cache = BlockCache(1, 2, 1, 1, 4, torch.empty(0))
    cache.hold(0, 40)
    size = len(cache.layers[0][0])
    cache.hold(0, 0)
    cache.hold(1, 40)
    assert len(cache.layers[0][0]) == size
    assert isinstance(cache.places(1, 40), slice)  # in one piece
