"""Without these tests answers could ignore their parameters, or depend on the rest of the batch."""

import random

import pytest
import torch

from run_gpt.engine.choice import _truncate, penalise
from run_gpt.engine.plan import Position, Sequence
from run_gpt.engine.request import Request, SamplingParams
from run_gpt.engine.sampler import Sampler
from run_gpt.engine.text import TextStream
from run_gpt.errors import InternalError

END = 0
VOCABULARY = 40


def row(token_ids=(), prompt=(3, 4), seed="0", **params):
    request = Request(id="r", prompt_ids=tuple(prompt), max_new_tokens=9, sampling=SamplingParams(**params))
    row = Sequence(request, 0, TextStream(str, ()), random.Random(seed))
    row.token_ids.extend(token_ids)
    return row


def choose(logits, *rows):
    """Return the sampler's choices, and check that it leaves the logits unchanged."""
    before = logits.clone()
    sampler = Sampler([END])
    chosen = sampler(logits, [Position(row, row=i) for i, row in enumerate(rows)], sampler.likeliest(logits))
    torch.testing.assert_close(logits, before, rtol=0, atol=0, equal_nan=True)
    return chosen


def penalised(logits, *positions):
    got = logits.clone()
    penalise(got, positions, [END])
    return got


@pytest.fixture
def logits():
    return torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(1))


def test_greedy_is_the_likeliest_token(logits):
    assert [s.token_id for s in choose(logits, row(), row(), row())] == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.2, "temperature": 0.9},
        {"top_k": 12, "top_p": 0.8, "min_p": 0.05},
    ],
)
def test_draws_follow_the_distribution_of_transformers(logits, params):
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    wanted = TemperatureLogitsWarper(params.get("temperature", 1.0))(None, logits[:1].clone())
    if k := params.get("top_k"):
        wanted = TopKLogitsWarper(k)(None, wanted)
    if p := params.get("top_p"):
        wanted = TopPLogitsWarper(p)(None, wanted)
    if p := params.get("min_p"):
        wanted = MinPLogitsWarper(p)(None, wanted)
    wanted = wanted.softmax(-1)[0]
    draws = 4000
    batch = [row(seed=str(i), do_sample=True, **params) for i in range(draws)]
    tokens = torch.tensor([s.token_id for s in choose(logits[:1].expand(draws, -1), *batch)])
    seen = torch.bincount(tokens, minlength=VOCABULARY) / draws
    assert (seen[wanted == 0] == 0).all()
    assert (seen - wanted).abs().max() < 0.04


def test_a_seed_gives_the_same_token_whatever_else_is_in_the_batch(logits):
    mine = {"do_sample": True, "temperature": 1.5, "seed": "7"}
    alone = choose(logits[:1], row(**mine))[0]
    busy = choose(logits, row(**mine), row(), row(do_sample=True, top_k=2, repetition_penalty=2.0))[0]
    assert alone == busy


def test_penalties_are_those_of_transformers(logits):
    from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

    token_ids = torch.tensor([[3, 4, 5, 6, 5]])
    got = penalised(logits[:1], Position(row([5, 6, 5], repetition_penalty=1.7, no_repeat_ngram_size=2)))[0]
    want = RepetitionPenaltyLogitsProcessor(1.7)(token_ids, logits[:1].clone())
    want = NoRepeatNGramLogitsProcessor(2)(token_ids, want)[0]
    torch.testing.assert_close(got, want)


def test_presence_and_frequency_count_the_answer_only(logits):
    params = {"presence_penalty": 0.5, "frequency_penalty": 0.25}
    taken = (logits[:1] - penalised(logits[:1], Position(row([5, 5, 6], **params))))[0]
    assert taken[5].item() == pytest.approx(1.0)
    assert taken[6].item() == pytest.approx(0.75)
    assert taken[3].item() == 0  # in the prompt


def test_drafted_tokens_that_were_right_count_like_the_answer(logits):
    params = {
        "repetition_penalty": 1.5,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "no_repeat_ngram_size": 2,
        "logit_bias": {5: 0.125},
        "min_new_tokens": 3,
    }
    drafted = penalised(logits[:1], Position(row([5, 6], **params), (5,)))
    torch.testing.assert_close(drafted, penalised(logits[:1], Position(row([5, 6, 5], **params))), rtol=0, atol=0)
    assert not torch.equal(drafted, penalised(logits[:1], Position(row([5, 6], **params))))


def test_penalties_stay_in_their_row(logits):
    rows = [row([5], repetition_penalty=1.5), row([6], presence_penalty=1.0), row([7], logit_bias={8: 2.0})]
    together = penalised(logits, *map(Position, rows))
    for i, one in enumerate(rows):
        torch.testing.assert_close(together[i : i + 1], penalised(logits[i : i + 1], Position(one)), rtol=0, atol=0)


def test_greedy_and_penalised_rows_do_not_disturb_each_other(logits):
    likeliest = logits.argmax(-1).tolist()
    plain, banned, again = choose(logits, row(), row(logit_bias={likeliest[1]: -100.0}), row())
    assert [plain.token_id, again.token_id] == [likeliest[0], likeliest[2]]
    assert banned.token_id == logits[1].topk(2).indices[1].item()


def test_bias_and_held_back_end(logits):
    logits[0, END] = 50.0
    assert choose(logits[:1], row())[0].token_id == END
    assert choose(logits[:1], row(min_new_tokens=1))[0].token_id != END
    assert choose(logits[:1], row([9], min_new_tokens=1))[0].token_id == END
    assert choose(logits[:1], row(logit_bias={END: -100.0, 9: 100.0}))[0].token_id == 9


@pytest.mark.parametrize("more", [{}, {"repetition_penalty": 1.1}, {"do_sample": True, "top_k": 1}])
def test_all_ends_of_a_request_are_held_back(logits, more):
    """Without this an answer could end before `min_new_tokens`, by one of its own `stop_token_ids`."""
    logits[0, 9], logits[0, END] = 60.0, 50.0
    ends = {"stop_token_ids": frozenset({9}), "min_new_tokens": 1, **more}
    assert choose(logits[:1], row(**ends))[0].token_id not in (9, END)
    assert choose(logits[:1], row([7], **ends))[0].token_id == 9


def test_log_probabilities_are_the_models_own(logits):
    sampled = choose(logits[:1], row(logprobs=2, logit_bias={9: 100.0}))[0].logprob
    own = logits[0].log_softmax(-1)
    assert sampled.token_id == 9
    assert sampled.logprob == pytest.approx(own[9].item(), abs=1e-5)
    assert [token for token, _ in sampled.top] == own.topk(2).indices.tolist()


def test_a_row_with_nan_fails_alone(logits):
    logits[1, 4] = torch.nan
    first, broken, third = choose(logits, row(), row(do_sample=True), row(do_sample=True))
    assert isinstance(broken, InternalError)
    assert first.token_id == logits[0].argmax().item()
    assert third.token_id < VOCABULARY
    for params in ({}, {"repetition_penalty": 1.1}):
        assert isinstance(choose(logits, row(), row(**params), row())[1], InternalError)


@pytest.mark.parametrize(
    "params", [{}, {"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 300, "top_p": 0.95, "temperature": 1.7}]
)
@pytest.mark.parametrize("flatness", [0.02, 1.0, 8.0])
def test_a_draw_of_a_large_vocabulary_is_that_of_its_cumulated_probabilities(params, flatness):
    """Check both ways, with a few candidates and with a full sort: the first token that passes the number is drawn."""
    logits = torch.randn(1, 3000, generator=torch.Generator().manual_seed(8)) * flatness
    sampling = SamplingParams(do_sample=True, **params)
    ordered, order = (logits / sampling.temperature).sort(-1, descending=True)
    kept = torch.zeros_like(logits).scatter(-1, order, _truncate(ordered, [sampling]))
    mass = kept.double().softmax(-1).cumsum(-1)[0]
    for seed in range(40):
        expected = int(torch.searchsorted(mass, random.Random(seed).random() * mass[-1], right=True))
        [sampled] = choose(logits, row(seed=seed, do_sample=True, **params))
        assert sampled.token_id == expected
