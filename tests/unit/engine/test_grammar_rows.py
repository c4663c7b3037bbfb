"""Without these tests answers could violate their grammar, or follow another sequence's. The grammar is scripted."""

import asyncio
import random
from array import array

import pytest
import torch

from run_gpt.config import EngineConfig
from run_gpt.engine.draft import PromptLookup
from run_gpt.engine.engine import BatchEngine
from run_gpt.engine.grammar import GrammarDrafts, GrammarState
from run_gpt.engine.plan import Position, Sequence
from run_gpt.engine.request import Request, SamplingParams, TokenEvent
from run_gpt.engine.runner import ModelRunner
from run_gpt.engine.sampler import Sampler
from run_gpt.engine.scheduler import Scheduler
from run_gpt.engine.text import TextStream
from run_gpt.engine.verify import choose_tokens
from run_gpt.errors import InternalError, InvalidRequest

END = 0
VOCABULARY = 12


class Cycle:
    """Grammar of sets of allowed tokens, one for each place in a cycle, for `length` tokens; then only the end."""

    def __init__(self, *sets, length=10**9, vocabulary=VOCABULARY, fails_after=10**9):
        self.sets, self.length, self.vocabulary, self.fails_after = sets, length, vocabulary, fails_after
        self.matchers = []

    def matcher(self):
        self.matchers.append(CycleMatcher(self))
        return self.matchers[-1]

    def allowed(self, place):
        return {END} if place >= self.length else self.sets[place % len(self.sets)]

    def holds(self, tokens):
        return all(token in self.allowed(place) for place, token in enumerate(tokens))


class CycleMatcher:
    def __init__(self, grammar):
        self.grammar, self.tokens, self.masks = grammar, [], 0

    def allows(self, token_id):
        return token_id in self.grammar.allowed(len(self.tokens))

    def mask(self):
        self.masks += 1
        mask = torch.zeros(self.grammar.vocabulary, dtype=torch.bool)
        mask[list(self.grammar.allowed(len(self.tokens)))] = True
        return mask

    def advance(self, token_id):
        assert self.allows(token_id)
        if len(self.tokens) == self.grammar.fails_after:
            raise InvalidRequest("too much work", param="response_format")
        self.tokens.append(token_id)

    def forced(self):
        forced = []
        while len(sets := self.grammar.allowed(len(self.tokens) + len(forced))) == 1 and sets != {END}:
            forced += sets
        return forced


EVEN_ODD = ({2, 4, 6, 8, 10}, {1, 3, 5, 7, 9, 11})


def request(name="0", tokens=60, prompt=(3, 4, 5, 3, 4), grammar=None, sequences=1, **params):
    sampling = SamplingParams(**{"seed": int(name), **params})
    return Request(
        id=name,
        prompt_ids=tuple(prompt),
        max_new_tokens=tokens,
        sampling=sampling,
        grammar=grammar,
        sequences=sequences,
    )


def row(grammar=None, answer=(), **params):
    row = Sequence(request(grammar=grammar, **params), 0, TextStream(str, ()), random.Random(0))
    row.token_ids.extend(answer)
    return row


def choose(logits, *rows):
    before = logits.clone()
    sampler = Sampler([END])
    chosen = sampler(logits, [Position(row, row=i) for i, row in enumerate(rows)], sampler.likeliest(logits))
    torch.testing.assert_close(logits, before, rtol=0, atol=0)
    return [sampled.token_id for sampled in chosen]


@pytest.fixture
def logits():
    return torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(1))


def test_a_row_takes_the_likeliest_token_that_its_grammar_allows_and_others_are_as_without_it(logits):
    plain = choose(logits, *[row() for _ in range(4)])
    chosen = choose(logits, row(), row(Cycle({7})), row(), row(Cycle({2, 3})))
    assert [chosen[0], chosen[2]] == [plain[0], plain[2]]
    assert chosen[1] == 7
    assert chosen[3] == 2 + logits[3, 2:4].argmax().item()


def test_no_mask_is_made_while_the_likeliest_token_is_allowed(logits):
    """Check that a grammar costs little for a model that follows it anyway."""
    grammar = Cycle(set(range(VOCABULARY)))
    constrained = row(grammar)
    assert choose(logits[:1], constrained) == [logits[0].argmax().item()]
    assert choose(logits[:1], row(grammar, repetition_penalty=1.0001)) == [logits[0].argmax().item()]
    assert [matcher.masks for matcher in grammar.matchers] == [0, 0]


@pytest.mark.parametrize("params", [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.5}, {"temperature": 2.0}, {}])
def test_drawn_tokens_are_of_the_grammar_with_every_parameter(logits, params):
    """Check that top-k, top-p and min-p apply to the allowed tokens only; else they might leave no token."""
    logits[:, 5:8] -= 30.0
    rows = [row(Cycle({5, 6}), do_sample=True, logit_bias={7: 60.0}, **params) for _ in range(4)]
    assert set(choose(logits, *rows)) <= {5, 6}


def test_other_rows_draw_the_same_numbers_beside_a_constrained_one(logits):
    alone = choose(logits, *[row(do_sample=True) for _ in range(4)])
    beside = choose(logits, row(do_sample=True), row(Cycle({7}), do_sample=True), row(do_sample=True), row(Cycle({1})))
    assert [alone[0], alone[2]] == [beside[0], beside[2]]


@pytest.mark.parametrize("vocabulary", [VOCABULARY - 3, VOCABULARY + 5])
def test_a_vocabulary_of_another_size_than_the_models(logits, vocabulary):
    """Check both cases: models with more logits than tokens, and tokenizers with more tokens than logits."""
    logits[:, -1] = 50.0
    for params in ({}, {"do_sample": True}):
        assert choose(logits[:1], row(Cycle({1, 2}, vocabulary=vocabulary), **params))[0] in (1, 2)


def test_a_row_whose_allowed_tokens_are_all_impossible_fails_alone():
    scheduler = _scheduler(2)
    scheduler.add(request("0", grammar=Cycle({7})))
    scheduler.add(request("1"))
    logits = torch.zeros(2, VOCABULARY)
    logits[:, 7] = -torch.inf
    first, second = choose_tokens(Sampler([END]), logits, scheduler.plan().runs)
    assert isinstance(first, InternalError)
    assert len(second) == 1


def _scheduler(rows, cheap_tokens=1):
    return Scheduler(
        max_running=rows,
        max_waiting=0,
        max_step_tokens=1000,
        end_ids=[END],
        new_text=lambda request: TextStream(lambda ids: "".join(f"{i} " for i in ids), request.prompt_ids),
        cheap_tokens=cheap_tokens,
    )


def _table():
    """Return the logits of a model that tends to count, and so to violate the grammars here."""
    logits = torch.randn(VOCABULARY, VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(5))
    for token in range(VOCABULARY):
        logits[:, token, token % (VOCABULARY - 1) + 1] += 3.0
    return logits


def _answers(requests, cheap_tokens, restart_at=None):
    """Return each sequence's tokens, and the scheduler's counters."""
    model, s, sampler = _table(), _scheduler(len(requests), cheap_tokens), Sampler([END])
    for one in requests:
        s.add(one)
    rows, steps = list(s.waiting), 0
    while s.running or s.waiting:
        if steps == restart_at:
            s.restart(cheap_tokens)
        plan, logits = s.plan(), []
        for run in plan.runs:
            text = [*run.sequence.token_ids[: run.start], *run.token_ids]
            logits += [model[text[i - 2], text[i - 1]] for i in range(run.end - run.num_logits + 1, run.end + 1)]
        s.commit(plan, choose_tokens(sampler, torch.stack(logits), plan.runs))
        s.check()
        steps += 1
    return [list(row.token_ids[len(row.request.prompt_ids) :]) for row in rows], s.counters


@pytest.mark.parametrize("params", [{}, {"do_sample": True}, {"repetition_penalty": 1.2}], ids=str)
def test_drafts_change_nothing_and_never_leave_the_grammar(params):
    grammars = [Cycle(*EVEN_ODD, length=50), Cycle({1, 2, 3}, {4, 5, 6}, {7, 8, 9}), None]
    requests = [request(str(i), grammar=grammar, **params) for i, grammar in enumerate(grammars)]
    plain, _ = _answers(requests, cheap_tokens=1)
    fast, counters = _answers(requests, cheap_tokens=32)
    assert fast == plain
    assert counters.accepted_tokens > 5
    assert counters.accepted_tokens < counters.drafted_tokens
    assert fast[0][-1] == END
    assert len(fast[0]) == 51
    assert len(fast[1]) == 60
    assert all(grammar.holds(tokens) for grammar, tokens in zip(grammars[:2], fast, strict=False))
    assert _answers([request("2", **params)], cheap_tokens=32)[0] == fast[2:]


def test_what_must_come_next_is_drafted_and_saves_steps():
    """Check drafts of forced tokens. Property names of a schema are the largest part of many answers."""
    grammar = Cycle({1, 2, 3}, {4}, {9}, {6}, length=40)
    requests = [request("0", grammar=grammar, do_sample=True)]
    plain, without = _answers(requests, cheap_tokens=1)
    fast, counters = _answers(requests, cheap_tokens=8)
    assert fast == plain
    assert (without.steps, counters.steps) == (41, 11)
    assert counters.accepted_tokens == counters.drafted_tokens == 30


def test_what_had_to_come_does_not_make_other_drafts_longer():
    state = GrammarState(Cycle({1}, {2, 3}))
    drafts, plain = GrammarDrafts(state, 5), PromptLookup()
    token_ids = array("i", [3, 4, 5, 3, 4])
    assert drafts.draft(token_ids, 8) == (1,)
    drafts.learn(token_ids, 1, 1)
    token_ids += array("i", [1])
    assert drafts.draft(token_ids, 8) == plain.draft(token_ids, 8)
    token_ids += array("i", [3, 1, 2, 1, 3, 1])
    assert drafts.draft(token_ids, 8) == plain.draft(token_ids, 8) == (2, 1, 3, 1)


def test_a_long_certain_text_is_cut_into_tokens_once_and_seldom_if_the_model_does_not_follow():
    """Check that a long text is not tokenised in each step, which would take longer than the step."""

    class Asked:
        times = 0

        def forced(self, answer):
            self.times += 1
            return range(100, 160)

    asked = Asked()
    drafts, token_ids = GrammarDrafts(asked, 0), array("i")
    while len(token_ids) < 60:
        draft = drafts.draft(token_ids, 8)
        assert draft == tuple(range(100 + len(token_ids), min(160, 108 + len(token_ids))))
        token_ids += array("i", draft)
        drafts.learn(token_ids, len(draft), len(draft))
    assert asked.times == 1
    for token in range(64):
        draft = drafts.draft(token_ids, 8)
        token_ids += array("i", [token])
        if draft:
            drafts.learn(token_ids, len(draft), 0)
    assert asked.times <= 1 + 64 // 16


def test_a_draft_that_goes_on_after_the_end_is_no_fault_of_the_row():
    """Check a draft with an end of turn, copied from a chat's prompt: the answer must not become an error."""
    s = _scheduler(1, cheap_tokens=8)
    s.add(request(prompt=(3, 4, 5, END, 6, 3, 4), grammar=Cycle({5}, length=1)))
    plan = s.plan()
    s.commit(plan, choose_tokens(Sampler([END]), torch.zeros(1, VOCABULARY), plan.runs))
    plan = s.plan()
    assert plan.runs[0].drafted[:2] == (END, 6)
    [result] = choose_tokens(Sampler([END]), torch.zeros(plan.runs[0].num_logits, VOCABULARY), plan.runs)
    assert [sampled.token_id for sampled in result] == [END]


def test_another_runner_goes_on_where_the_grammar_was():
    requests = [request("0", grammar=Cycle(*EVEN_ODD, length=30))]
    assert _answers(requests, cheap_tokens=8, restart_at=5)[0] == _answers(requests, cheap_tokens=8)[0]


def test_a_matcher_has_what_its_row_has_and_no_more():
    """Check that a step without a commit, because its sequence was aborted, has no effect on other sequences."""
    grammar = Cycle(*EVEN_ODD)
    s = _scheduler(1)
    s.add(request(grammar=grammar))
    assert not grammar.matchers  # a waiting sequence holds no memory
    plan = s.plan()
    choose_tokens(Sampler([END]), torch.zeros(1, VOCABULARY), plan.runs)
    s.abort("0")
    s.commit(plan, [[]])
    s.add(request(grammar=grammar))
    choose_tokens(Sampler([END]), torch.zeros(1, VOCABULARY), s.plan().runs)
    assert [matcher.tokens for matcher in grammar.matchers] == [[], []]


class CountingRunner(ModelRunner):
    """Runner that counts up from the last token. With `fails` set it fails once."""

    end_ids = (END,)
    reuses_prefixes = False
    cheap_tokens = 8
    fails = False

    def forward(self, runs):
        if self.fails:
            self.fails = False
            raise RuntimeError("scripted")
        last = [token for run in runs for token in run.token_ids[len(run.token_ids) - run.num_logits :]]
        return torch.nn.functional.one_hot(torch.tensor(last) % (VOCABULARY - 1) + 1, VOCABULARY).float()

    def release(self, slots):
        pass

    copy = release

    def reset(self):
        pass


@pytest.fixture
def runner():
    return CountingRunner()


@pytest.fixture
def engine(runner):
    engine = BatchEngine(runner, lambda ids: "".join(f"{i} " for i in ids), EngineConfig(max_running=4))
    yield engine
    engine.shutdown()
    engine.scheduler.check()


async def collect(engine, request):
    events = [TokenEvent(index, "", 0) for index in range(request.sequences)]
    async for event in engine.submit(request):
        events[event.index] += event
    return events


async def test_each_sequence_of_a_request_follows_the_grammar_by_itself(engine):
    grammar = Cycle(*EVEN_ODD, length=12)
    answers = await collect(engine, request(grammar=grammar, sequences=3, do_sample=True, temperature=9.0))
    texts = [[int(token) for token in answer.text.split()] for answer in answers]
    assert all(grammar.holds(tokens) and len(tokens) == 12 for tokens in texts)
    assert [answer.finish_reason for answer in answers] == ["stop"] * 3
    assert len({tuple(tokens) for tokens in texts}) == 3
    assert len(grammar.matchers) == 3


async def test_a_cut_answer_says_so_and_is_the_beginning_of_one(engine):
    grammar = Cycle(*EVEN_ODD, length=12)
    [answer] = await collect(engine, request(grammar=grammar, tokens=5))
    assert answer.finish_reason == "length"
    assert grammar.holds(int(token) for token in answer.text.split())


async def test_a_grammar_that_cannot_go_on_ends_its_own_request_only(engine):
    good = asyncio.create_task(collect(engine, request("1", grammar=Cycle(*EVEN_ODD), tokens=40)))
    plain = asyncio.create_task(collect(engine, request("2", tokens=40)))
    with pytest.raises(InvalidRequest, match="too much work"):
        await collect(engine, request("0", grammar=Cycle(*EVEN_ODD, fails_after=7), tokens=40))
    assert (await good)[0].tokens == 40
    assert [int(token) for token in (await plain)[0].text.split()] == [(4 + i) % 11 + 1 for i in range(40)]


async def test_a_grammar_that_breaks_ends_its_own_request_only(engine):
    class Broken(Cycle):
        def matcher(self):
            raise ZeroDivisionError("scripted")

    plain = asyncio.create_task(collect(engine, request("2", tokens=40)))
    with pytest.raises(InternalError, match="scripted"):
        await collect(engine, request(grammar=Broken()))
    assert (await plain)[0].tokens == 40


async def test_after_a_failed_step_a_grammar_serves_again(engine, runner):
    grammar = Cycle(*EVEN_ODD, length=12)
    runner.fails = True
    with pytest.raises(InternalError, match="scripted"):
        await collect(engine, request(grammar=grammar))
    [answer] = await collect(engine, request(grammar=grammar))
    assert answer.finish_reason == "stop"
    assert grammar.holds(int(token) for token in answer.text.split())
