"""Without these tests requests could be lost, answered twice or delayed unfairly, answers could use another request's
cache, and slots could stay taken for ever."""

from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from run_gpt.engine.plan import Sampled
from run_gpt.engine.request import Request, SamplingParams, TokenEvent, TokenLogprob
from run_gpt.engine.scheduler import Scheduler
from run_gpt.engine.slots import MIN_PREFIX, Copy, Ring
from run_gpt.engine.text import TextStream
from run_gpt.errors import ContextLengthExceeded, InternalError, QueueFull

END = 0


def decode(ids):
    return "".join(f"<{i}>" for i in ids)


def scheduler(max_running=2, max_waiting=4, decode=decode, max_step_tokens=100, **more):
    return Scheduler(
        max_running=max_running,
        max_waiting=max_waiting,
        max_step_tokens=max_step_tokens,
        end_ids=[END],
        new_text=lambda request: TextStream(decode, request.prompt_ids, request.stop),
        **more,
    )


def request(name, tokens=3, prompt=(7, 8), **more):
    return Request(id=name, prompt_ids=tuple(prompt), max_new_tokens=tokens, **more)


def step(s, *tokens):
    """Plan a step and commit these tokens, one for each sequence that samples one; without any, 5 for all."""
    plan = s.plan()
    results = [[Sampled(token)] for token in tokens or [5] * sum(run.num_logits > 0 for run in plan.runs)]
    outcomes = s.commit(plan, results)
    s.check()
    return plan, outcomes


def names(runs):
    return [run.sequence.request.id for run in runs]


def prompts(plan):
    return [run for run in plan.runs if run.start < len(run.sequence.request.prompt_ids)]


def continued(plan):
    return [run for run in plan.runs if run not in prompts(plan)]


def test_first_come_first_served_and_a_free_slot_is_used_in_the_next_step():
    s = scheduler()
    for name, tokens in (("a", 1), ("b", 3), ("c", 1), ("d", 1)):
        s.add(request(name, tokens))
    plan, outcomes = step(s)
    assert names(prompts(plan)) == ["a", "b"]
    assert [event.finish_reason for _, event in outcomes] == ["length", None]
    plan, _ = step(s)
    assert names(prompts(plan)) == ["c"]
    assert names(continued(plan)) == ["b"]
    assert plan.released == (prompts(plan)[0].slot,)
    plan, outcomes = step(s)
    assert {row.request.id: event.finish_reason for row, event in outcomes} == {"b": "length", "d": "length"}
    assert not s.running
    assert not s.waiting


def test_the_end_of_sequence_comes_before_stop_and_length():
    s = scheduler()
    s.add(request("a", tokens=1, stop=("<0>",)))
    _, [(_, event)] = step(s, END)
    assert event == TokenEvent(0, "", 1, "stop")


@pytest.mark.parametrize(
    ("params", "tokens", "ends_with", "text"),
    [
        ({"stop_token_ids": frozenset({6})}, (5, 6), "stop", "<5>"),
        ({"stop_token_ids": frozenset({6})}, (5, END), "stop", "<5>"),
        ({"ignore_eos": True}, (END, 5, END), "length", "<0><5><0>"),
        ({"ignore_eos": True, "stop_token_ids": frozenset({6})}, (END, 6), "stop", "<0>"),
        ({"ignore_eos": True, "stop_token_ids": frozenset({END})}, (5, END), "stop", "<5>"),
    ],
)
def test_a_request_chooses_which_tokens_end_it(params, tokens, ends_with, text):
    s = scheduler()
    s.add(request("a", tokens=3, sampling=SamplingParams(**params)))
    events = [step(s, token)[1][0][1] for token in tokens]
    assert [event.finish_reason for event in events] == [None] * (len(tokens) - 1) + [ends_with]
    assert "".join(event.text for event in events) == text
    assert not s.running


def test_a_stop_text_comes_before_length_and_is_not_shown():
    s = scheduler()
    s.add(request("a", tokens=2, stop=("5><6",)))
    _, [(_, first)] = step(s, 5)
    _, [(_, last)] = step(s, 6)
    assert (first.text + last.text, last.finish_reason) == ("<", "stop")


def test_tokens_of_a_stop_text_that_come_with_drafts_are_hidden():
    s = scheduler()
    s.add(request("a", tokens=9, stop=("><6",), sampling=SamplingParams(logprobs=0)))
    step(s, 5)
    plan = s.plan()
    [(_, event)] = s.commit(plan, [[Sampled(token, TokenLogprob(token, -1.0)) for token in (4, 5, 6, 7)]])
    assert (event.text, event.tokens, event.finish_reason) == ("><4><5", 3, "stop")
    assert [(token.token_id, token.shown) for token in event.logprobs] == [(4, None), (5, 2), (6, 0)]


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
    outcomes = s.commit(plan, [[Sampled(5)], [Sampled(5)]])
    assert [row.request.id for row, _ in outcomes] == ["b"]
    s.check()
    assert s.plan().released == (plan.runs[0].slot,)


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
    s.add(request("long", tokens=1, prompt=range(10)))
    parts = []
    while s.running and not any(run.num_logits for run in parts):
        plan, _ = step(s)
        parts += prompts(plan)
        assert names(continued(plan)) == ["short"]
    assert [(run.start, run.end, run.num_logits) for run in parts] == [(0, 3, 0), (3, 6, 0), (6, 9, 0), (9, 10, 1)]
    assert parts[-1].token_ids == (9,)


# Reuse of what slots hold.

LONG = tuple(range(10, 30))


def test_of_prompts_that_come_together_half_run_first():
    """Check that not all prompts wait for the end of one long step to get their first token."""
    s = scheduler(max_running=16, max_waiting=16, max_step_tokens=500)
    for i in range(16):
        s.add(request(str(i), prompt=range(20)))
    assert [len(prompts(step(s)[0])) for _ in range(4)] == [9, 4, 3, 0]


def test_prompts_of_many_steps_fill_each():
    """Check that each step is full; else every step would lose throughput."""
    s = scheduler(max_running=8, max_waiting=8, max_step_tokens=100)
    for i in range(8):
        s.add(request(str(i), prompt=range(150), tokens=1))
    steps = [step(s)[0] for _ in range(12)]
    assert [sum(len(run.token_ids) for run in plan.runs) for plan in steps] == [100] * 12
    assert not s.has_work or s.slots.released


def reusing(**more):
    return scheduler(reuse_prefixes=True, **more)


def answer(s, request, tokens=(5,)):
    """Run a request alone, which ends with the last of these tokens; returns the plan of its prompt."""
    s.add(request)
    first, [(row, event)] = step(s, tokens[0])
    for token in tokens[1:]:
        _, [(row, event)] = step(s, token)
    assert event.finish_reason
    assert event.cached_tokens == row.cached == prompts(first)[0].start
    return first


def test_a_turn_that_goes_on_runs_only_what_is_new_and_takes_the_slot_that_holds_the_rest():
    s = reusing()
    first = answer(s, request("a", 2, LONG), (5, 6))
    assert (first.released, first.copies, first.runs[0].start) == ((), (), 0)
    # The slot holds the prompt and 5: the 6 was sampled last and never run.
    second = answer(s, request("b", 1, (*LONG, 5, 6, 7)))
    assert (second.released, second.copies) == ((), ())
    assert (second.runs[0].slot, second.runs[0].start, second.runs[0].token_ids) == (0, 21, (6, 7))


def test_a_common_beginning_is_copied_into_an_empty_slot_and_then_into_the_one_used_longest_ago():
    s = reusing(max_running=3)
    answer(s, request("a", 1, LONG))
    beginning = LONG[:12]
    second = answer(s, request("b", 1, (*beginning, 90, 91)))
    assert (second.released, second.copies) == ((), (Copy(0, 1, 12),))
    assert [(run.slot, run.start, run.token_ids) for run in second.runs] == [(1, 12, (90, 91))]
    answer(s, request("c", 1, (60, 61)))
    assert [slot.number for slot in s.slots.kept] == [0, 1, 2]
    last = answer(s, request("d", 1, (*LONG[:15], 92)))
    assert (last.released, last.copies) == ((1,), (Copy(0, 1, 15),))


def test_a_slot_that_is_copied_from_counts_as_used():
    s = reusing(max_running=3)
    answer(s, request("a", 1, LONG))
    answer(s, request("b", 1, range(200, 220)))
    answer(s, request("c", 1, (*LONG[:12], 90)))
    assert answer(s, request("d", 1, (70, 71))).released == (1,)


def test_the_last_slot_is_taken_in_place_though_it_holds_more():
    s = reusing(max_running=1)
    answer(s, request("a", 1, LONG))
    second = answer(s, request("b", 1, (*LONG[:12], 90)))
    assert (second.released, second.copies, second.runs[0].start) == ((), (), 12)
    third = answer(s, request("c", 1, LONG))
    assert third.runs[0].start == 12  # the rest was replaced


def test_the_whole_prompt_is_never_reused_for_its_last_token_gives_the_logits():
    s = reusing(max_running=1)
    answer(s, request("a", 1, LONG))
    again = answer(s, request("b", 1, LONG))
    assert (again.runs[0].start, again.runs[0].token_ids) == (19, LONG[-1:])


def test_a_few_common_tokens_are_run_again():
    s = reusing()
    answer(s, request("a", 1, LONG))
    assert answer(s, request("b", 1, (*LONG[: MIN_PREFIX - 1], 90))).runs[0].start == 0
    assert answer(s, request("c", 1, (*LONG[:MIN_PREFIX], 90))).runs[0].start == MIN_PREFIX


def test_a_prefix_is_reused_in_its_own_space_only():
    """`cached_tokens` and the time to the first token would tell one user what another one has sent."""
    s = reusing(max_running=3)
    answer(s, request("a", 1, LONG, cache_space="alice/"))
    for space in ("bob/", "", "alice/salt", "alice"):
        other = answer(s, request("b", 1, LONG, cache_space=space))
        assert (other.runs[0].start, other.copies) == (0, ()), space
        assert answer(s, request("c", 1, LONG, cache_space=space)).runs[0].start == 19
    assert answer(s, request("d", 1, LONG, cache_space="alice/")).runs[0].start == 0  # it was used longest ago


def test_a_running_row_lends_nothing_to_another_space_and_pooled_prompts_are_no_exception():
    s = reusing(max_step_tokens=12, max_running=4)
    s.add(request("a", 9, LONG, cache_space="alice/"))
    step(s)
    s.add(request("b", 0, LONG, cache_space="bob/", pooling="last"))
    plan = s.plan()
    assert plan.copies == ()
    assert {run.slot: run.start for run in plan.runs} == {0: 12, 1: 0}


def test_a_row_that_still_runs_lends_what_it_has_computed():
    s = reusing(max_step_tokens=12)
    s.add(request("a", 9, LONG))
    step(s)
    s.add(request("b", 9, (*LONG, 90)))
    plan, _ = step(s)  # 12 of its 20 tokens were computed before this step
    assert plan.copies == (Copy(0, 1, 12),)
    assert [(run.slot, run.start) for run in plan.runs] == [(0, 12), (1, 12)]


def test_a_slot_that_is_copied_from_is_not_given_away_in_the_same_step():
    s = reusing(max_running=2)
    answer(s, request("a", 1, LONG))
    s.add(request("b", 1, (*LONG[:12], 90)))
    s.add(request("c", 1, (70, 71)))
    first, _ = step(s)
    assert (names(first.runs), first.copies) == (["b"], (Copy(0, 1, 12),))
    second, _ = step(s)
    assert names(second.runs) == ["c"]


def test_what_a_row_left_that_was_aborted_in_a_step_is_what_it_had_computed_before():
    s = reusing(max_step_tokens=12)
    s.add(request("a", 9, LONG))
    step(s)
    plan = s.plan()
    s.abort("a")
    assert s.commit(plan, [[Sampled(5)]]) == []
    assert answer(s, request("b", 1, (*LONG[:15], 90))).runs[0].start == 12


def test_a_failed_step_leaves_nothing_to_reuse():
    s = reusing()
    answer(s, request("a", 1, LONG))
    s.add(request("b", 1, (70, 71)))
    s.plan()
    assert [row.request.id for row, _ in s.fail(InternalError("broken"))] == ["b"]
    s.check()
    assert not s.has_work
    assert answer(s, request("c", 1, LONG)).runs[0].start == 0


def test_the_sequences_of_a_request_run_its_prompt_once():
    s = reusing(max_running=4, max_step_tokens=10)
    s.add(request("a", 2, LONG, sequences=3))
    s.add(request("b", 2, (70, 71)))
    first, outcomes = step(s)
    assert ([(run.start, run.end) for run in first.runs], outcomes) == ([(0, 10)], [])
    second, outcomes = step(s)
    assert [(run.start, run.end) for run in second.runs] == [(10, 20)]
    assert [row.index for row, _ in outcomes] == [0]
    third, _ = step(s)  # b, which waited for their prompt, runs now
    assert [(run.sequence.request.id, run.sequence.index, run.start) for run in third.runs] == [
        ("a", 0, 20),
        ("a", 1, 19),
        ("a", 2, 19),
        ("b", 0, 0),
    ]
    assert third.copies == (Copy(0, 1, 19), Copy(0, 2, 19))
    assert [row.cached for row in s.running if row.request.id == "a"] == [19, 19]  # the first one has ended


def test_who_waits_for_the_first_sequence_does_not_stop_those_behind():
    s = reusing(max_running=2, max_step_tokens=30)
    s.add(request("a", 3, LONG, sequences=2))
    s.add(request("b", 1, (70, 71)))
    assert names(step(s)[0].runs) == ["a", "b"]
    plan, _ = step(s)
    assert [(run.sequence.request.id, run.sequence.index) for run in plan.runs] == [("a", 0), ("a", 1)]


def test_without_reuse_the_sequences_of_a_request_run_its_prompt_together():
    s = scheduler(max_running=4)
    s.add(request("a", tokens=2, sequences=3))
    plan, _ = step(s)
    assert [(run.sequence.index, run.start) for run in plan.runs] == [(0, 0), (1, 0), (2, 0)]


# Memory.


def test_kept_slots_make_room_those_unused_longest_first():
    s = reusing(max_running=4, max_cache_tokens=60)
    answer(s, request("a", 1, range(100, 115)))
    answer(s, request("b", 1, range(200, 215)))
    answer(s, request("c", 1, range(300, 315)))
    plan = answer(s, request("d", 9, range(400, 416)), (5,) * 9)  # 45 are kept, it may need 25
    assert plan.released == (0,)
    assert plan.runs[0].slot == 3


def test_a_slot_stays_whose_tokens_are_just_being_copied():
    s = reusing(max_running=3, max_cache_tokens=60)
    answer(s, request("a", 1, LONG))
    answer(s, request("b", 1, range(200, 220)))
    plan = answer(s, request("c", 12, (*LONG[:15], 90)), (5,) * 12)
    assert plan.released == (1,)
    assert plan.copies == (Copy(0, 2, 15),)


def test_a_prefix_is_taken_in_place_where_there_is_no_memory_for_a_copy():
    s = reusing(max_running=3, max_cache_tokens=40)
    answer(s, request("a", 1, LONG))
    plan = answer(s, request("b", 20, (*LONG[:15], 90)), (5,) * 20)
    assert (plan.released, plan.copies, plan.runs[0].start) == ((), (), 15)


def test_a_row_waits_for_memory_and_nobody_overtakes_it():
    s = reusing(max_running=4, max_cache_tokens=50)
    s.add(request("a", 10, LONG))
    s.add(request("b", 10, range(200, 220)))
    s.add(request("c", 1, (70, 71)))
    assert names(step(s)[0].runs) == ["a"]
    step(s, END)
    assert names(step(s)[0].runs) == ["b", "c"]


def test_what_can_never_have_memory_is_refused():
    s = reusing(max_cache_tokens=29)
    with pytest.raises(ContextLengthExceeded, match=r"may have 30 tokens, the cache holds 29"):
        s.add(request("a", 10, LONG))
    assert not s.has_work


# Drafts.

LOOP = (1, 2, 3, 4, 5, 6, 1, 2, 3)


def drafted(**more):
    s = scheduler(cheap_tokens=8, **more)
    s.add(request("a", more.pop("tokens", 20), LOOP))
    plan, _ = step(s, 4)
    assert plan.runs[0].drafted == ()
    return s


def commit(s, plan, *tokens):
    [(row, event)] = s.commit(plan, [[Sampled(token) for token in tokens]])
    s.check()
    return row, event


def test_right_drafts_are_all_appended_with_the_token_after_them():
    s = drafted()
    plan = s.plan()
    assert (plan.runs[0].start, plan.runs[0].token_ids, plan.runs[0].num_logits) == (9, (4, 5, 6, 1, 2), 5)
    row, event = commit(s, plan, 5, 6, 1, 2, 9)
    assert (event.text, event.tokens) == (decode([5, 6, 1, 2, 9]), 5)
    assert s.plan().runs[0].start == len(row.token_ids) - 1 == 14
    assert (s.counters.drafted_tokens, s.counters.accepted_tokens, s.counters.generated_tokens) == (4, 4, 6)


def test_what_was_drafted_wrong_is_run_over():
    s = drafted()
    row, event = commit(s, s.plan(), 5, 9)
    assert event.text == decode([5, 9])
    [run] = s.plan().runs
    assert (run.start, run.token_ids) == (11, (9,))
    assert row.place.length == 11


def test_the_end_within_a_draft_ends_the_row_there():
    s = drafted(reuse_prefixes=True)
    row, event = commit(s, s.plan(), 5, END, 1, 2)
    assert (event.text, event.tokens, event.finish_reason) == (decode([5]), 2, "stop")
    assert row.ended
    assert list(row.token_ids[: row.place.length]) == [*LOOP, 4, 5, END]


def test_drafts_stay_within_the_longest_answer():
    s = scheduler(cheap_tokens=8)
    s.add(request("a", 4, LOOP))
    step(s, 4)
    plan = s.plan()
    assert plan.runs[0].drafted == (5, 6)
    _, event = commit(s, plan, 5, 6, 1)
    assert event.finish_reason == "length"


def test_drafts_fill_what_is_cheap_and_no_more():
    s = scheduler(max_running=4, cheap_tokens=8)
    for name in "abc":
        s.add(request(name, 20, LOOP))
    step(s, 4, 4, 4)
    assert [run.drafted for run in s.plan().runs] == [(5,), (5,), (5,)]
    s = scheduler(max_running=4, cheap_tokens=8)
    s.add(request("a", 20, LOOP))
    step(s, 4)
    s.add(request("b", 20, range(50, 56)))  # its prompt fills the step
    assert [run.drafted for run in s.plan().runs] == [(5,), ()]


# All of it, at random.

ACTIONS = st.lists(st.tuples(st.sampled_from("aasssssxfr"), st.integers(0, 999)), max_size=80)
KINDS = st.fixed_dictionaries(
    {
        "reuse_prefixes": st.booleans(),
        "cheap_tokens": st.sampled_from([1, 9]),
        "max_cache_tokens": st.sampled_from([None, 70, 120]),
        "max_step_tokens": st.sampled_from([2, 12, 100]),
        "window": st.sampled_from([None, 1, 6]),
    }
)


class SlotModel:
    """Model of a runner's slots, by the plans. It is an error if a sequence runs on anything but its own token_ids, or
    without a token of its window in the ring.
    """

    def __init__(self, window=None, ring=None):
        self.held = {}
        self.window, self.ring = window, ring
        self.places = {}  # by slot: the position that each place of its ring holds

    def run(self, plan):
        for slot in plan.released:
            self.held.pop(slot, None)
            self.places.pop(slot, None)
        for copy in plan.copies:
            assert len(self.held[copy.source]) >= copy.length
            self.held[copy.target] = self.held[copy.source][: copy.length]
            self.places[copy.target] = dict(self.places.get(copy.source, {}))
        for run in plan.runs if self.ring else ():
            places = self.places.setdefault(run.slot, {})
            places.update({position % self.ring.size: position for position in range(run.start, run.end)})
            for position in range(max(0, run.start - self.window + 1), run.end):
                assert places[position % self.ring.size] == position
        assert len({run.slot for run in plan.runs}) == len(plan.runs)
        for run in plan.runs:
            before = self.held.get(run.slot, ())[: run.start]
            self.held[run.slot] = (*before, *run.token_ids)
            known = tuple(run.sequence.token_ids)
            assert self.held[run.slot][: len(known)] == known[: run.end]
            assert len(self.held[run.slot]) == run.end
            assert run.drafted == run.token_ids[len(known) - run.start :] if run.drafted else run.end <= len(known)


def shared_prompt(argument):
    """Return a prompt of one of four kinds with a common prefix, of different lengths."""
    return (*range(argument % 9 + 8), *([50 + argument % 4] * (argument % 13)), *range(argument % 5 + 1))


def sampled(run, argument):
    """Return as many right drafts as the argument sets, then a token that repeats at times."""
    right = run.drafted[: argument % (run.num_sampled + 1)]
    return [Sampled(token) for token in (*right, (argument + run.start) % 7)]


def scores(run):
    """Return a score for each prompt token that this run scores: its position."""
    return [
        TokenLogprob(run.sequence.token_ids[at], float(at))
        for at in range(run.start + 1, run.start + run.num_scored + 1)
    ]


@patch("run_gpt.engine.scheduler.MAX_SCORED", 5)
@settings(max_examples=300)
@given(ACTIONS, KINDS)
def test_every_row_ends_once_and_runs_on_its_own_history(actions, kind):
    window = kind.pop("window")
    back = max(kind["max_step_tokens"], 9)  # a restart may bring drafts
    ring = None if window is None else Ring(size=back + window - 1, back=back, layers=1, all_layers=2)
    s = scheduler(max_running=3, max_waiting=5, ring=ring, **kind)
    model = SlotModel(window, ring)
    asked, ended, aborted, given = {}, [], set(), {}

    def note(outcomes):
        for row, outcome in outcomes:
            if isinstance(outcome, TokenEvent):
                given.setdefault((row.request.id, row.index), []).extend(outcome.prompt_logprobs)
            if isinstance(outcome, InternalError) or outcome.finish_reason:
                ended.append((row.request.id, row.index))
            if isinstance(outcome, InternalError):
                s.abort(row.request.id)
                aborted.add(row.request.id)

    def one_step(argument, abort=None):
        plan = s.plan()
        model.run(plan)
        s.check()
        if abort:
            s.abort(abort)
            aborted.add(abort)
        assert sum(run.num_scored for run in plan.runs) <= 5
        results = [sampled(run, argument) for run in plan.runs if run.num_sampled]
        note(s.commit(plan, results, scores=[scores(run) for run in plan.runs if run.num_scored]))

    for number, (action, argument) in enumerate(actions):
        some = list(asked)[argument % len(asked)] if asked else None
        if action == "a":
            prompt = shared_prompt(argument)
            k = 0 if argument % 7 in (2, 3) else None
            new = request(str(number), argument % 12, prompt, sequences=argument % 3 + 1, prompt_logprobs=k)
            try:
                s.add(new)
                asked[new.id] = new
            except QueueFull:
                pass
        elif action == "s":
            one_step(argument, abort=some if argument % 10 == 0 else None)
        elif action == "x" and some:
            s.abort(some)
            aborted.add(some)
        elif action == "f":
            s.plan()
            model.held.clear()
            model.places.clear()
            note(s.fail(InternalError("broken")))
        elif action == "r":
            s.restart(cheap_tokens=argument % 2 * 8 + 1)
            model.held.clear()
            model.places.clear()
        s.check()
    steps = 0
    while s.waiting or s.running:
        one_step(steps)
        steps += 1
        assert steps < 2000, "it does not come to an end"
    assert len(ended) == len(set(ended))
    expected = {(r.id, i) for r in asked.values() for i in range(r.sequences) if r.id not in aborted}
    assert expected <= set(ended)
    for (name, _), found in given.items():
        prompt = asked[name].prompt_ids
        places = range(1, len(prompt)) if asked[name].prompt_logprobs is not None else ()
        assert found == [TokenLogprob(prompt[at], float(at)) for at in places]
    assert set(model.held) >= {slot.number for slot in s.slots.kept}
