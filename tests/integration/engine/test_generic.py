"""Without these tests steps could compute more than was requested."""

from types import SimpleNamespace

import pytest
import torch
import transformers

from run_gpt.engine.plan import ScheduledTokens
from run_gpt.engine.runners.generic import GenericRunner
from run_gpt.engine.slots import Copy


class Counted:
    """Runner over a tiny model that records the shapes of the token ids in each step's model calls."""

    def __init__(self):
        config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=128, vocab_size=50)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        self.runner, self._calls = GenericRunner(model), []
        model.register_forward_pre_hook(lambda _, args, kwargs: self._note(kwargs), with_kwargs=True)

    def _note(self, inputs):
        self._calls.append(tuple(inputs["input_ids"].shape))

    def step(self, *runs):
        """Run a step and return the shapes. Runs are (slot, start, tokens)."""
        self._calls.clear()
        rows = {slot: SimpleNamespace(place=SimpleNamespace(number=slot), adapter=None) for slot, _, _ in runs}
        logits = self.runner.forward(
            [ScheduledTokens(rows[slot], at, tuple(range(count)), count) for slot, at, count in runs]
        )
        assert logits.shape == (sum(count for _, _, count in runs), 50)
        return sorted(self._calls)


@pytest.fixture
def counted():
    with torch.inference_mode():
        yield Counted()


def test_a_kept_row_is_not_computed(counted):
    counted.step((0, 0, 1), (1, 0, 1), (2, 0, 1))
    assert counted.step((0, 1, 1), (1, 1, 1), (2, 1, 1)) == [(3, 1)]
    assert counted.step((0, 2, 1), (2, 2, 1)) == [(2, 1)]
    assert counted.step((0, 3, 1), (1, 2, 1), (2, 3, 1)) == [(3, 1)]  # and it can go on


def test_only_rows_with_drafts_run_alone(counted):
    counted.step((0, 0, 1), (1, 0, 1), (2, 0, 1))
    assert counted.step((0, 1, 3), (1, 1, 1), (2, 1, 1)) == [(1, 3), (2, 1)]
    assert counted.step((0, 2, 1), (1, 2, 1), (2, 2, 1)) == [(3, 1)]  # two of the three were rejected


def test_rows_that_stay_are_not_moved(counted):
    counted.step((0, 0, 1), (1, 0, 1))
    counted.step((0, 1, 1), (1, 1, 1))
    [batch] = counted.runner._batches
    counted.step((0, 2, 1), (1, 2, 1))
    assert counted.runner._batches == [batch]


def test_what_is_copied_and_released_leaves_nothing_behind(counted):
    counted.step((0, 0, 1), (1, 0, 1))
    counted.runner.copy([Copy(0, 2, 1), Copy(2, 1, 1)])
    assert sorted(slot for batch in counted.runner._batches for slot in batch.slots if slot >= 0) == [0, 1, 2]
    counted.runner.release([0, 1, 2])
    assert not counted.runner._batches


def test_a_run_from_the_start_begins_its_slot_anew(counted):
    counted.step((0, 0, 3), (1, 0, 1))
    counted.step((0, 0, 1))
    assert sorted(counted.runner._batch_of(slot).length(slot) for slot in (0, 1)) == [1, 1]
    assert sum(batch.slots.count(0) for batch in counted.runner._batches) == 1
