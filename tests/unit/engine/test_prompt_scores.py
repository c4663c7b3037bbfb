"""Without these tests prompt scores could be lost, doubled, or belong to a wrong token or another prompt."""

import pytest
import torch

from run_gpt.engine import scheduler as module
from run_gpt.engine.plan import Sampled, ScheduledTokens
from run_gpt.engine.request import Request, TokenEvent, TokenLogprob
from run_gpt.engine.scheduler import Scheduler
from run_gpt.engine.score import score_prompts
from run_gpt.engine.slots import Copy
from run_gpt.engine.text import TextStream
from run_gpt.errors import InternalError

END = 0
PROMPT = tuple(range(10, 20))


@pytest.fixture(autouse=True)
def parts_of_four(monkeypatch):
    monkeypatch.setattr(module, "MAX_SCORED", 4)


def scheduler(max_running=3, max_step_tokens=100, **more):
    return Scheduler(
        max_running=max_running,
        max_waiting=4,
        max_step_tokens=max_step_tokens,
        end_ids=[END],
        new_text=lambda request: TextStream(lambda ids: "".join(f"<{i}>" for i in ids), request.prompt_ids),
        **more,
    )


def request(name, tokens=3, prompt=PROMPT, k=0, **more):
    return Request(id=name, prompt_ids=tuple(prompt), max_new_tokens=tokens, prompt_logprobs=k, **more)


def scores(run):
    """Return scores that hold their token and its position: -1 is the second token of the prompt, and so on."""
    places = range(run.start + 1, run.start + run.num_scored + 1)
    return [TokenLogprob(run.sequence.token_ids[place], -float(place)) for place in places]


def all_scores(prompt=PROMPT):
    return tuple(TokenLogprob(token, -float(place)) for place, token in enumerate(prompt))[1:]


def commit(s, plan, error=None):
    results = [[Sampled(5)] for run in plan.runs if run.num_sampled]
    given = [error or scores(run) for run in plan.runs if run.num_scored]
    outcomes = s.commit(plan, results, scores=given)
    s.check()
    return outcomes


def step(s):
    plan = s.plan()
    return shape(plan), commit(s, plan)


def shape(plan):
    return [
        (run.sequence.request.id, run.sequence.index, run.start, run.end, run.num_logits, run.num_scored)
        for run in plan.runs
    ]


def finish(s):
    """Run to the end; returns the joined events of each sequence."""
    events = {}
    while s.has_work:
        for row, event in step(s)[1]:
            earlier = events.get((row.request.id, row.index), TokenEvent(row.index, "", 0))
            events[row.request.id, row.index] = earlier + event
    return events


def test_a_prompt_is_scored_in_parts_and_its_scores_come_with_the_first_token():
    s = scheduler()
    s.add(request("a"))
    assert step(s) == ([("a", 0, 0, 4, 4, 4)], [])
    assert step(s) == ([("a", 0, 4, 8, 4, 4)], [])
    plan, [(_, event)] = step(s)
    assert plan == [("a", 0, 8, 10, 2, 1)]
    assert event == TokenEvent(0, "<5>", 1, prompt_logprobs=all_scores())
    _, [(_, event)] = step(s)
    assert event == TokenEvent(0, "<5>", 1)


def test_a_last_token_that_is_left_alone_is_run_as_any_other():
    s = scheduler()
    s.add(request("a", prompt=PROMPT[:5]))
    step(s)
    plan, [(_, event)] = step(s)
    assert plan == [("a", 0, 4, 5, 1, 0)]
    assert event.prompt_logprobs == all_scores(PROMPT[:5])


def test_a_prompt_of_one_token_has_no_scores():
    s = scheduler()
    s.add(request("a", 0, PROMPT[:1]))
    assert [event for _, event in step(s)[1]] == [TokenEvent(0, "", 0, "length")]


@pytest.mark.parametrize("k", [None, 0])
def test_no_new_tokens_give_an_empty_answer_after_the_whole_prompt(k):
    s = scheduler(max_step_tokens=6, max_cache_tokens=len(PROMPT), reuse_prefixes=True)
    s.add(request("a", 0, k=k, stop=("<5>",)))
    event = finish(s)["a", 0]
    assert event == TokenEvent(0, "", 0, "length", prompt_logprobs=() if k is None else all_scores())
    assert (s.counters.generated_tokens, s.counters.prompt_tokens) == (0, 10)
    assert [slot.length for slot in s.slots.kept] == [10]


def test_all_rows_together_score_no_more_than_the_limit_and_others_take_what_is_left_of_the_step():
    s = scheduler(max_step_tokens=12)
    s.add(request("a", prompt=PROMPT[:6]))
    s.add(request("b", prompt=PROMPT[:6]))
    s.add(request("c", k=None))
    assert step(s)[0] == [("a", 0, 0, 4, 4, 4), ("c", 0, 0, 8, 0, 0)]
    assert step(s)[0] == [("a", 0, 4, 6, 2, 1), ("b", 0, 0, 3, 3, 3), ("c", 0, 8, 10, 1, 0)]
    assert step(s)[0] == [("a", 0, 6, 7, 1, 0), ("c", 0, 10, 11, 1, 0), ("b", 0, 3, 6, 3, 2)]


def test_small_steps_bound_the_parts_as_well():
    s = scheduler(max_step_tokens=3)
    s.add(request("a", 1))
    assert finish(s)["a", 0].prompt_logprobs == all_scores()
    assert s.counters.steps == 4


def test_nothing_is_reused_for_scores_but_what_they_leave_is():
    s = scheduler(reuse_prefixes=True)
    s.add(request("a", 1, k=None))
    finish(s)
    s.add(request("b", 1))
    event = finish(s)["b", 0]
    assert (event.prompt_logprobs, event.cached_tokens) == (all_scores(), 0)
    s.add(request("c", 1, k=None))
    assert finish(s)["c", 0].cached_tokens == 9


@pytest.mark.parametrize("reuse", [True, False])
def test_the_sequences_of_a_request_share_the_scores_of_the_first(reuse):
    s = scheduler(reuse_prefixes=reuse)
    s.add(request("a", sequences=2))
    assert [step(s)[0] for _ in range(3)] == [[("a", 0, *run)] for run in ((0, 4, 4, 4), (4, 8, 4, 4), (8, 10, 2, 1))]
    plan = s.plan()
    assert shape(plan) == [("a", 0, 10, 11, 1, 0), ("a", 1, 9 if reuse else 0, 10, 1, 0)]
    assert plan.copies == ((Copy(0, 1, 9),) if reuse else ())
    assert [event.prompt_logprobs for _, event in commit(s, plan)] == [(), all_scores()]
    finish(s)


def test_an_error_in_the_scores_ends_the_row():
    s = scheduler()
    s.add(request("a"))
    s.add(request("b", k=None))
    outcomes = commit(s, s.plan(), InternalError("broken"))
    assert [(row.request.id, str(getattr(event, "text", event))) for row, event in outcomes] == [
        ("a", "broken"),
        ("b", "<5>"),
    ]
    assert [row.request.id for row in s.running] == ["b"]


def test_scores_of_a_row_that_was_aborted_in_a_step_are_not_anothers():
    s = scheduler()
    s.add(request("a", prompt=PROMPT[:3]))
    s.add(request("b", prompt=PROMPT[4:6]))
    plan = s.plan()
    s.abort("a")
    [(_, event)] = commit(s, plan)
    assert event.prompt_logprobs == all_scores(PROMPT[4:6])


@pytest.mark.parametrize("steps", range(6))
def test_another_runner_in_the_middle_neither_loses_nor_doubles_scores(steps):
    s = scheduler(reuse_prefixes=True)
    s.add(request("a", sequences=2))
    events = {}
    for number in range(20):
        if number == steps:
            s.restart(cheap_tokens=1)
            s.check()
        for row, event in step(s)[1]:
            events[row.index] = events.get(row.index, TokenEvent(row.index, "", 0)) + event
    assert [event.prompt_logprobs for event in events.values()] == [all_scores()] * 2
    assert [event.text for event in events.values()] == ["<5>" * 3] * 2


def test_after_a_failed_step_the_next_request_is_scored_from_its_beginning():
    s = scheduler(reuse_prefixes=True)
    s.add(request("a"))
    step(s)
    s.plan()
    assert [row.request.id for row, _ in s.fail(InternalError("broken"))] == ["a"]
    s.add(request("b", 0))
    assert finish(s)["b", 0].prompt_logprobs == all_scores()


def test_drafts_begin_after_a_scored_prompt():
    s = scheduler(cheap_tokens=8)
    s.add(request("a", 9, (1, 2, 5, 1, 2)))
    step(s)
    [run] = s.plan().runs
    assert (run.start, run.num_scored, run.num_sampled, run.drafted) == (4, 0, 5, (5, 1, 2, 5))


# From logits to scores.


def runs(*parts):
    """Return runs of separate sequences, each given as (k, prompt, start, end, choosing)."""
    made = []
    for k, prompt, start, end, choosing in parts:
        s = scheduler()
        s.add(request("a", prompt=prompt, k=k))
        wanted = end - start if k is not None else choosing
        made.append(ScheduledTokens(s.waiting[0], start, tuple(prompt[start:end]), wanted, wanted - choosing))
    return made


def test_scores_are_those_of_a_softmax_in_full_with_the_likeliest_in_order():
    torch.manual_seed(0)
    some = runs((2, PROMPT, 0, 4, 0), (None, PROMPT, 0, 10, 1), (0, PROMPT, 7, 10, 1), (30, PROMPT, 2, 4, 0))
    logits = torch.randn(4 + 1 + 3 + 2, 25)
    logprobs = logits.log_softmax(-1)
    found = score_prompts(logits, some)
    assert [len(one) for one in found] == [4, 2, 2]
    for one, first, position, k in zip(found, (0, 5, 8), (0, 7, 2), (2, 0, 25), strict=True):
        for place, score in enumerate(one):
            expected = logprobs[first + place]
            assert score.token_id == PROMPT[position + place + 1]
            assert score.logprob == pytest.approx(float(expected[score.token_id]))
            assert [token for token, _ in score.top] == expected.argsort(descending=True)[:k].tolist()
            assert [value for _, value in score.top] == pytest.approx(expected.sort(descending=True).values[:k])
    assert score_prompts(logits, runs((None, PROMPT, 0, 10, 1))) == []


def test_half_precision_is_scored_in_full():
    logits = torch.randn(4, 25, generator=torch.Generator().manual_seed(1)).bfloat16()
    [found] = score_prompts(logits, runs((0, PROMPT, 0, 4, 0)))
    expected = logits.double().log_softmax(-1)[range(4), PROMPT[1:5]]
    assert [score.logprob for score in found] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_ends_its_row_alone(value):
    logits = torch.zeros(8, 25)
    logits[1, 3] = value
    broken, fine = score_prompts(logits, runs((0, PROMPT, 0, 4, 0), (0, PROMPT, 0, 4, 0)))
    assert isinstance(broken, InternalError)
    assert "gave NaN" in str(broken)
    assert len(fine) == 4


def test_a_prompt_that_cannot_be_scored_ends_alone():
    broken, fine = score_prompts(torch.zeros(8, 25), runs((0, (1, 99, 1, 1), 0, 4, 1), (0, PROMPT, 0, 5, 1)))
    assert isinstance(broken, InternalError)
    assert len(fine) == 4
