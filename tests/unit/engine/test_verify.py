"""Without these tests speculation could change answers; it may only make them faster."""

import random

import pytest
import torch

from run_gpt.engine.plan import Sampled
from run_gpt.engine.request import Request, SamplingParams
from run_gpt.engine.sampler import Sampler
from run_gpt.engine.scheduler import Scheduler
from run_gpt.engine.text import TextStream
from run_gpt.engine.verify import choose_tokens
from run_gpt.errors import InternalError

END = 0
VOCABULARY = 12


def table():
    """Return logits that depend on the last two tokens. This model tends to count, so its text repeats for a while."""
    logits = torch.randn(VOCABULARY, VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(5))
    for token in range(VOCABULARY):
        logits[:, token, token % (VOCABULARY - 1) + 1] += 3.0
    logits[..., END] -= 4.0
    return logits


def answers(model, requests, cheap_tokens):
    """Return the requests' token ids, and the scheduler's counters. The model replaces runner and engine."""
    s = Scheduler(
        max_running=len(requests),
        max_waiting=0,
        max_step_tokens=1000,
        end_ids=[END],
        new_text=lambda request: TextStream(lambda ids: "".join(f"{i} " for i in ids), request.prompt_ids),
        cheap_tokens=cheap_tokens,
    )
    for request in requests:
        s.add(request)
    rows, sampler = list(s.waiting), Sampler([END])
    while s.running or s.waiting:
        plan = s.plan()
        logits = []
        for run in plan.runs:
            text = [*run.sequence.token_ids[: run.start], *run.token_ids]
            logits += [model[text[i - 2], text[i - 1]] for i in range(run.end - run.num_logits + 1, run.end + 1)]
        s.commit(plan, choose_tokens(sampler, torch.stack(logits), plan.runs))
        s.check()
    return [list(row.token_ids[len(row.request.prompt_ids) :]) for row in rows], s.counters


def request(name, tokens=250, prompt=(3, 4, 5, 3, 4), **params):
    sampling = SamplingParams(**{"seed": int(name), **params})
    return Request(id=name, prompt_ids=tuple(prompt), max_new_tokens=tokens, sampling=sampling)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.01},
        {"min_new_tokens": 50},
        {"do_sample": True, "min_new_tokens": 50, "repetition_penalty": 1.2},
        {"no_repeat_ngram_size": 5, "min_new_tokens": 20},
        {"do_sample": True, "ignore_eos": True},
        {"do_sample": True, "stop_token_ids": frozenset({9}), "min_new_tokens": 60},
        {"presence_penalty": 0.3, "frequency_penalty": 0.05},
    ],
    ids=lambda params: "-".join(params) or "greedy",
)
def test_the_same_seed_gives_the_same_tokens_with_speculation_and_without(params):
    model = table()
    requests = [request(str(i), prompt=(3, 4, 5, 3, 4 + i), **params) for i in range(4)]
    plain, without = answers(model, requests, cheap_tokens=1)
    fast, counters = answers(model, requests, cheap_tokens=32)
    assert fast == plain
    assert without.drafted_tokens == 0
    assert counters.accepted_tokens > 5
    assert counters.accepted_tokens < counters.drafted_tokens  # there were wrong drafts as well
    assert counters.steps <= without.steps


def test_every_token_is_drawn_from_the_distribution_of_its_own_place():
    """Test the tokens after each context, drawn with speculation, by chi-square. 0.001 of right samplers would fail."""
    model = table()
    model[..., END] = -torch.inf
    requests = [request(str(i), tokens=400, do_sample=True) for i in range(8)]
    texts, counters = answers(model, requests, cheap_tokens=64)
    assert counters.accepted_tokens > 200
    seen = torch.zeros(VOCABULARY, VOCABULARY, VOCABULARY)
    for text in texts:
        for one, two, three in zip(text, text[1:], text[2:], strict=False):
            seen[one, two, three] += 1
    expected = model.softmax(-1) * seen.sum(-1, keepdim=True)
    counted = expected > 5
    statistic = ((seen - expected) ** 2 / expected)[counted].sum().item()
    freedom = counted.sum().item() - (counted.any(-1)).sum().item()
    assert statistic < freedom + 3.1 * (2 * freedom) ** 0.5  # the normal approximation, for many degrees of freedom


def planned(**params):
    """Return a scheduler, and its plan of two repeating sequences with drafts."""
    s = Scheduler(
        max_running=2,
        max_waiting=0,
        max_step_tokens=100,
        end_ids=[END],
        new_text=lambda request: TextStream(str, ()),
        cheap_tokens=10,
    )
    for name in "01":
        s.add(request(name, prompt=(3, 4, 5, 6, 3, 4), **params))
    s.commit(s.plan(), [[Sampled(5)], [Sampled(5)]])
    return s, s.plan()


def test_a_row_that_fails_at_its_second_place_ends_alone():
    _, plan = planned()
    assert [run.drafted for run in plan.runs] == [(6, 3, 4, 5)] * 2
    logits = torch.nn.functional.one_hot(torch.tensor([6, 3, 9, 1, 1] * 2), VOCABULARY).float()
    logits[1, 7] = torch.nan
    first, second = choose_tokens(Sampler([END]), logits, plan.runs)
    assert isinstance(first, InternalError)
    assert [sampled.token_id for sampled in second] == [6, 3, 9]


def test_a_row_whose_parameters_break_the_sampler_ends_alone():
    _, plan = planned()
    broken = request("2", logit_bias={VOCABULARY + 1: 1.0})
    plan.runs[0].sequence.request = broken
    logits = torch.nn.functional.one_hot(torch.tensor([6, 3, 9, 1, 1] * 2), VOCABULARY).float()
    first, second = choose_tokens(Sampler([END]), logits, plan.runs)
    assert isinstance(first, InternalError)
    assert [sampled.token_id for sampled in second] == [6, 3, 9]


def test_one_number_is_drawn_for_each_token_and_none_for_what_follows_a_wrong_draft():
    _, plan = planned(do_sample=True)
    logits = torch.nn.functional.one_hot(torch.tensor([6, 9, 1, 1, 1] * 2), VOCABULARY).float() * 1000
    results = choose_tokens(Sampler([END]), logits, plan.runs)
    assert [len(result) for result in results] == [2, 2]
    for run in plan.runs:
        fresh = random.Random(f"{run.sequence.request.sampling.seed}/0")
        fresh.random(), fresh.random()
        assert run.sequence.random.random() == fresh.random()
