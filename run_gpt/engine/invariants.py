"""Invariants of a scheduler: each sequence has the slot, the memory and the scores that it should."""

from collections.abc import Iterable

from run_gpt.engine.plan import Sequence
from run_gpt.engine.slots import Slots


def check(waiting: Iterable[Sequence], running: Iterable[Sequence], slots: Slots) -> None:
    """Check that sequences and slots fit together. Raises AssertionError."""
    _must(
        all(sequence.place is None and not sequence.ended for sequence in waiting),
        "a waiting sequence has a slot or has ended",
    )
    _must(
        all(sequence.place is not None and not sequence.ended for sequence in running),
        "a running sequence has no slot",
    )
    used = [sequence.place for sequence in running if sequence.place is not None]
    reserved = [slot for slot in slots.all if slot.reserved]
    _must(
        sorted(s.number for s in used) == [s.number for s in reserved],
        "slots in use are not those of the sequences",
    )
    _must(
        all(sequence.place and sequence.place.token_ids is sequence.token_ids for sequence in running),
        "a slot is another sequence's",
    )
    scored = [(sequence, sequence.place.length) for sequence in running if sequence.scores_prompt and sequence.place]
    wrong = [sequence for sequence, run in scored if len(sequence.scores) != min(run, len(sequence.token_ids) - 1)]
    _must(not wrong, "a prompt has not the scores of what was run of it")
    slots.check()


def _must(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)
