"""Lost, doubled or unfairly delayed requests, and slots that never come back, if these failed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from run_gpt.engine.request import Request, TokenEvent
from run_gpt.engine.scheduler import Sampled, Scheduler
from run_gpt.engine.text import TextStream
from run_gpt.errors import InternalError, QueueFull

END = 0


def decode(ids):
    return "".join(f"<{i}>" for i in ids)


def scheduler(max_running=2, max_waiting=4, decode=decode, max_step_tokens=100):
    return Scheduler(
        max_running=max_running,
        max_waiting=max_waiting,
        max_step_tokens=max_step_tokens,
        end_ids=[END],
        new_text=lambda request: TextStream(decode, request.prompt_ids, request.stop),
    )


def request(name, tokens=3, **more):
    return Request(id=name, prompt_ids=(7, 8), max_new_tokens=tokens, **more)


def step(s, *tokens):
    plan = s.plan()
    results = [Sampled(token) for token in tokens] or [Sampled(5)] * len(plan.rows)
    outcomes = s.commit(plan, results)
    s.check()
    return plan, outcomes


def test_first_come_first_served_and_a_free_slot_is_used_in_the_next_step():
    s = scheduler()
    for name, tokens in (("a", 1), ("b", 3), ("c", 1), ("d", 1)):
        s.add(request(name, tokens))
    plan, outcomes = step(s)
    assert [chunk.row.request.id for chunk in plan.prefill] == ["a", "b"]
    assert [event.finish_reason for _, event in outcomes] == ["length", None]
    plan, _ = step(s)
    assert [chunk.row.request.id for chunk in plan.prefill] == ["c"]
    assert [row.request.id for row in plan.decode] == ["b"]
    assert plan.released == (plan.prefill[0].slot,)
    plan, outcomes = step(s)
    assert {row.request.id: event.finish_reason for row, event in outcomes} == {"b": "length", "d": "length"}
    assert not s.running
    assert not s.waiting


def test_the_end_of_sequence_comes_before_stop_and_length():
    s = scheduler()
    s.add(request("a", tokens=1, stop=("<0>",)))
    _, [(_, event)] = step(s, END)
    assert event == TokenEvent(0, "", 1, "stop")


def test_a_stop_text_comes_before_length_and_is_not_shown():
    s = scheduler()
    s.add(request("a", tokens=2, stop=("5><6",)))
    _, [(_, first)] = step(s, 5)
    _, [(_, last)] = step(s, 6)
    assert (first.text + last.text, last.finish_reason) == ("<", "stop")


def test_a_full_queue_names_its_limit():
    s = scheduler(max_running=2, max_waiting=1)
    s.add(request("a", sequences=3))
    with pytest.raises(QueueFull, match=r"3 sequences wait, 1 more would pass the limit of 1"):
        s.add(request("b"))
    assert {row.request.id for row in s.waiting} == {"a"}


def test_an_aborted_row_is_skipped_by_the_step_that_runs_it():
    s = scheduler()
    s.add(request("a"))
    s.add(request("b"))
    plan = s.plan()
    s.abort("a")
    outcomes = s.commit(plan, [Sampled(5), Sampled(5)])
    assert [row.request.id for row, _ in outcomes] == ["b"]
    s.check()
    assert s.plan().released == (plan.prefill[0].slot,)


def test_a_row_whose_text_fails_ends_alone():
    def broken(ids):
        if 6 in ids:
            raise ValueError("no such token")
        return decode(ids)

    s = scheduler(decode=broken)
    s.add(request("a"))
    s.add(request("b"))
    _, [(_, failed), (_, fine)] = step(s, 6, 5)
    assert isinstance(failed, InternalError)
    assert fine.text == "<5>"
    assert [row.request.id for row in s.running] == ["b"]


def test_a_long_prompt_is_taken_in_parts_between_which_the_others_go_on():
    s = scheduler(max_step_tokens=4)
    s.add(request("short", tokens=9))
    step(s)
    s.add(Request(id="long", prompt_ids=tuple(range(10)), max_new_tokens=1))
    parts = []
    while s.running and not any(chunk.last for chunk in parts):
        plan, _ = step(s)
        parts += plan.prefill
        assert [row.request.id for row in plan.decode] == ["short"]
    assert [(chunk.start, chunk.end, chunk.last) for chunk in parts] == [
        (0, 3, False),
        (3, 6, False),
        (6, 9, False),
        (9, 10, True),
    ]
    assert [chunk.token_ids for chunk in parts][-1] == (9,)


def test_the_sequences_of_a_request_run_its_prompt_once():
    s = scheduler(max_running=4, max_step_tokens=1)
    s.add(request("a", tokens=2, sequences=3))
    first, outcomes = step(s)
    assert (len(first.prefill), first.forks, outcomes) == (1, (), [])
    second, outcomes = step(s)
    assert [(chunk.start, chunk.end) for chunk in second.prefill] == [(1, 2)]
    assert [(fork.source.index, fork.row.index) for fork in second.forks] == [(0, 1), (0, 2)]
    assert [row.index for row, _ in outcomes] == [0, 1, 2]
    assert [row.index for row in step(s)[0].decode] == [0, 1, 2]


def test_a_sequence_for_which_there_was_no_slot_runs_the_prompt_itself():
    s = scheduler(max_running=1)
    s.add(request("a", tokens=1, sequences=2))
    assert step(s)[0].forks == ()
    plan, [(row, event)] = step(s)
    assert [chunk.row.index for chunk in plan.prefill] == [1]
    assert (row.index, event.finish_reason) == (1, "length")


@given(st.lists(st.tuples(st.sampled_from("asxf"), st.integers(0, 9)), max_size=60))
def test_every_row_ends_once_and_every_slot_comes_back(actions):
    s = scheduler(max_running=3, max_waiting=5, max_step_tokens=2)
    asked, ended, aborted = {}, [], set()

    def note(outcomes):
        for row, outcome in outcomes:
            if isinstance(outcome, InternalError) or outcome.finish_reason:
                ended.append((row.request.id, row.index))

    for number, (action, argument) in enumerate(actions):
        if action == "a":
            new = request(str(number), tokens=argument % 4 + 1, sequences=argument % 3 + 1)
            try:
                s.add(new)
                asked[new.id] = new
            except QueueFull:
                pass
        elif action == "s":
            note(step(s)[1])
        elif action == "x" and asked:
            name = list(asked)[argument % len(asked)]
            s.abort(name)
            aborted.add(name)
        elif action == "f":
            note(s.fail(list(s.running), InternalError("broken")))
        s.check()
    while s.waiting or s.running:
        note(step(s)[1])
    assert len(ended) == len(set(ended))
    expected = {(r.id, i) for r in asked.values() for i in range(r.sequences) if r.id not in aborted}
    assert expected <= set(ended)
