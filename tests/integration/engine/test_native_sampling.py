"""Without these tests the native runner could choose other tokens than the others do for the same seed."""

import random
from dataclasses import fields

import pytest
import torch

from run_gpt.engine.choice import choose
from run_gpt.engine.plan import Position, Sequence
from run_gpt.engine.request import Request, SamplingParams
from run_gpt.engine.runners.native import choices
from run_gpt.engine.runners.native.binding import Context, Kernels
from run_gpt.engine.runners.native.build import built, unsupported
from run_gpt.engine.runners.native.targets import BUILDS, NATIVE
from run_gpt.engine.text import TextStream
from run_gpt.models.cache import cache_root

pytestmark = pytest.mark.skipif(unsupported() is not None, reason=str(unsupported()))
END_IDS = (0, 5)


@pytest.fixture(scope="module", params=[NATIVE, BUILDS[-1].options], ids=["native", BUILDS[-1].name])
def context(request):
    return Context(Kernels(built(cache_root() / "kernels", request.param)), 2)


def position(logits, row, chance, **params):
    """Return a position with some tokens before it, and up to two accepted drafts."""
    likely = logits[row].topk(min(20, logits.shape[-1])).indices.tolist()
    ids = tuple(chance.choices(likely, k=chance.randrange(1, 30)))
    prompt = chance.randrange(1, len(ids) + 1)
    request = Request(id="r", prompt_ids=ids[:prompt], max_new_tokens=99, sampling=SamplingParams(**params))
    sequence = Sequence(request, 0, TextStream(str, ()), random.Random(f"{row} {params}"))
    sequence.token_ids.extend(ids[prompt:])
    return Position(sequence, tuple(chance.choices(likely, k=chance.randrange(3))), row)


def any_params(logits, row, chance):
    """Return parameters; most of them have their defaults."""
    likely = logits[row].topk(min(20, logits.shape[-1])).indices.tolist()
    values = {
        "temperature": chance.choice([0.01, 0.7, 1.6]),
        "top_k": chance.choice([1, 7, 40, 300, 10**6]),
        "top_p": chance.choice([1e-6, 0.3, 0.9, 0.999]),
        "min_p": chance.choice([0.001, 0.05, 1.0]),
        "repetition_penalty": chance.choice([0.8, 1.3]),
        "presence_penalty": chance.choice([-0.5, 1.5]),
        "frequency_penalty": chance.choice([-0.1, 0.7]),
        "logit_bias": {token: chance.choice([-100.0, 0.3, 4.0]) for token in chance.sample(likely, 3)},
        "no_repeat_ngram_size": chance.choice([1, 2, 3, 40]),
        "min_new_tokens": chance.choice([3, 90]),
        "stop_token_ids": frozenset(likely[:2]),
    }
    some = {name: value for name, value in values.items() if chance.random() < 0.3}
    return {"do_sample": chance.random() < 0.8, **some}


@pytest.mark.parametrize(("vocabulary", "spread"), [(24, 2.0), (3000, 0.01), (3000, 1.0), (5003, 4.0)])
def test_tokens_are_those_of_the_other_runners(context, vocabulary, spread):
    logits = torch.randn(60, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * spread
    before = logits.clone()
    for number in range(4):
        ways = []
        for choose_tokens in (choose, lambda *arguments: choices.choose(context, *arguments)):
            chance = random.Random(number)
            positions = [position(logits, i, chance, **any_params(logits, i, chance)) for i in range(len(logits))]
            ways.append(choose_tokens(logits, positions, END_IDS))
        expected, got = ways
        for at, *tokens in zip(positions, expected, got, strict=True):
            assert tokens[0] == tokens[1], at.params
    assert torch.equal(logits, before)


@pytest.mark.parametrize("params", [{}, {"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.1}, {"top_k": 300, "top_p": 0.95}])
def test_draws_of_a_whole_vocabulary_are_those_of_the_other_runners(context, params):
    logits = torch.randn(1, 49_152, generator=torch.Generator().manual_seed(3)) * 3
    for seed in range(30):
        ways = [
            way(logits, [position(logits, 0, random.Random(seed), do_sample=True, seed=seed, **params)], END_IDS)
            for way in (choose, lambda *arguments: choices.choose(context, *arguments))
        ]
        assert ways[0] == ways[1]


def test_a_row_is_chosen_alike_in_any_batch_whatever_was_chosen_before(context):
    logits = torch.randn(40, 1000, generator=torch.Generator().manual_seed(4))

    def positions(rows):
        params = {"do_sample": True, "presence_penalty": 0.5, "top_p": 0.9}
        return [position(logits, i, random.Random(i), **params, top_k=i) for i in rows]

    together = choices.choose(context, logits, positions(range(40)), END_IDS)
    assert [choices.choose(context, logits, positions([i]), END_IDS)[0] for i in reversed(range(40))] == together[::-1]


def test_rows_without_a_choice_end_well(context):
    """Check that infinite logits, all tokens banned, and ids outside of the vocabulary break nothing."""
    logits = torch.zeros(3, 40)
    logits[0], logits[1, 7] = -torch.inf, torch.inf
    chance = random.Random(0)
    outside = {"logit_bias": {10**6: 1.0}, "stop_token_ids": frozenset({10**6}), "min_new_tokens": 90}
    positions = [position(logits, i, chance, do_sample=True, **params) for i, params in enumerate([{}, {}, outside])]
    tokens = choices.choose(context, logits, positions, END_IDS)
    assert tokens[1] == 7
    assert all(0 <= token < 40 for token in tokens)


def test_each_sampling_parameter_has_its_place():
    """Without this test a new parameter could have no effect with the native runner."""
    assert {field.name for field in fields(SamplingParams)} == {*choices.NUMBERS, *choices.ELSEWHERE}
