"""Mapping between API and engine requests: without these tests answers could have wrong texts, counts or limits."""

import asyncio
import threading
from types import SimpleNamespace
from typing import ClassVar

import pytest

from run_gpt.api.embeddings import EmbedRequest
from run_gpt.config import ModelConfig
from run_gpt.engine.interface import Engine, EngineStats
from run_gpt.engine.request import TokenEvent, TokenLogprob
from run_gpt.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound, QueueFull
from run_gpt.local.launch import RunningModel
from run_gpt.local.model import Model
from run_gpt.local.preparation import LONG
from run_gpt.local.workers import LONG_WAITING
from run_gpt.models.grammar import GrammarCompiler
from run_gpt.models.templates import PLAIN
from run_gpt.process import tenants


class ScriptedTokenizer:
    """Tokenizer with one token for each character."""

    chat_template = None
    all_special_tokens = ()
    added_tokens_decoder: ClassVar = {}

    def apply_chat_template(self, messages, **_):
        return "".join(f"{message['role']}: {message['content']}\n" for message in messages)

    def __call__(self, text, **_):
        return {"input_ids": [ord(c) for c in text]}

    def decode(self, ids, **_):
        return "".join(map(chr, ids))

    def convert_ids_to_tokens(self, token_id):
        return chr(token_id)

    def get_added_vocab(self):
        return {}

    def get_vocab(self):
        return {}

    all_special_ids = ()
    added_tokens_decoder: ClassVar = {}

    def __len__(self):
        return 1000


class ScriptedEngine(Engine):
    """Engine that answers each request with the given events, and records the requests."""

    def __init__(self, *events):
        self.events = events
        self.asked = []
        self.closed = False

    def start(self, request, outlet):
        self.asked.append(request)
        self.telling = asyncio.create_task(self.tell(outlet))

    async def tell(self, outlet):
        for event in self.events:
            outlet.receive(event)
            await asyncio.sleep(0)
        outlet.ended(None)

    def abort(self, request_id):
        raise AssertionError("nothing is aborted here")

    adapters = ()

    def load_adapter(self, name, weights):
        self.adapters = (*self.adapters, name)

    def unload_adapter(self, name):
        self.adapters = tuple(there for there in self.adapters if there != name)

    def stats(self):
        return EngineStats("ready", 1, 2)

    def metrics(self):
        return ""

    def shutdown(self, drain_seconds=0.0):
        self.closed = True


def model_of(*events, max_context=None, chat_template=None, config=None, sampling=None):
    engine = ScriptedEngine(*events)
    loaded = SimpleNamespace(
        name="scripted",
        precision="fp32",
        device="cpu",
        notes=(),
        chat_template=chat_template,
        sampling=sampling or {},
        tokenizer=ScriptedTokenizer(),
        adapter_base=None,
        vocabulary=1000,
    )
    grammars = GrammarCompiler(loaded.tokenizer, 1000, (0,))
    running = RunningModel(loaded, engine, grammars, min(100, max_context or 100))
    return Model(running, config or ModelConfig()), engine


HELLO = (TokenEvent(0, "hel", 2), TokenEvent(0, "", 1), TokenEvent(0, "lo", 1, "stop"))


@pytest.fixture
def hello():
    model, engine = model_of(*HELLO)
    with model:
        yield model, engine
    assert engine.closed


async def test_each_kind_of_request_runs_in_the_space_of_its_key_and_salt():
    """Requests of one space share their prompts' cache: two users in one could read each other's prompts."""
    model, engine = model_of(TokenEvent(0, "", 1, "stop", embedding=(1.0,)))
    tenants.current.set("alice")
    await model.agenerate("ab", cache_salt="s")
    async for _ in model.agenerate_stream("ab"):
        pass
    await model._answer(EmbedRequest.parse({"texts": ["a", "b"], "cache_salt": "s"}))
    assert [request.cache_space for request in engine.asked] == ["alice/s", "alice/", "alice/s", "alice/s"]
    await model.aclose()


def test_an_answer_has_all_text_and_counts_all_tokens(hello):
    answer = hello[0].generate("ab")
    assert (answer.text, str(answer), answer.prompt, answer.model) == ("hello", "hello", "ab", "scripted")
    assert answer.usage.model_dump() == {
        "prompt_tokens": 2,
        "completion_tokens": 4,
        "total_tokens": 6,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert answer.choices[0].finish_reason == "stop"


def test_a_stream_says_only_what_is_new(hello):
    events = list(hello[0].generate_stream("ab", echo=True))
    assert [e.text for e in events] == ["abhel", "lo"]
    assert [e.prompt for e in events] == ["ab", None]
    assert [e.usage.completion_tokens for e in events] == [2, 4]
    assert len({e.id for e in events}) == 1


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, 90),  # the default of 512 does not fit
        ({"max_new_tokens": 7}, 7),
        ({"max_tokens": 7}, 7),
        ({"max_length": 30}, 20),
        ({"max_length": 30, "max_new_tokens": 5}, 5),
        ({"max_length": 10**6}, 90),
    ],
)
def test_length_limits(hello, parameters, expected):
    model, engine = hello
    model.generate("x" * 10, **parameters)
    assert engine.asked[-1].max_new_tokens == expected


def test_what_cannot_fit_names_both_numbers(hello):
    model, _ = hello
    with pytest.raises(ContextLengthExceeded, match="100 tokens, the model's context holds 100"):
        model.generate("x" * 100)
    with pytest.raises(InvalidRequest, match="max_length = 5: the prompt alone has 10 tokens"):
        model.generate("x" * 10, max_length=5)
    with pytest.raises(InvalidRequest, match="token id 1000 is outside the vocabulary of 1000"):
        model.generate("x", logit_bias={"1000": 1})
    with pytest.raises(ModelNotFound, match="'other' is not served here: 'scripted' is"):
        model.generate("x", model="other")


def test_an_error_has_the_name_that_the_request_was_given(hello):
    """Check the request id of errors: the same code may call a server, and reports failures by this id."""
    model, _ = hello
    for call in (model.generate, model.chat, model.generate_stream, model.chat_stream):
        with pytest.raises(ModelNotFound) as raised:
            list(call("x", model="other", request_id="mine"))
        assert raised.value.request_id == "mine"


def test_max_context_lowers_the_models_own():
    model, engine = model_of(*HELLO, max_context=20)
    with model:
        model.generate("x" * 10)
    assert engine.asked[0].max_new_tokens == 10


def test_a_chat_ends_where_its_template_ends_a_turn():
    """Check the stop sequences: a model without an end-of-turn token would go on with the user's next question."""
    model, engine = model_of(*HELLO, chat_template=PLAIN)
    with model:
        model.chat("hi", stop=["."])
        model.generate("hi", stop=["."])
    assert engine.asked[0].stop == (".", *PLAIN.stop)
    assert "\nUser:" in PLAIN.stop
    assert engine.asked[1].stop == (".",)


def test_a_request_says_which_tokens_end_it():
    model, engine = model_of(*HELLO, chat_template=PLAIN)
    with model:
        model.chat("hi", stop=["."], stop_token_ids=[5, 7, 5], ignore_eos=True)
        with pytest.raises(InvalidRequest, match="stop_token_ids: token id 1000 is outside the vocabulary of 1000"):
            model.generate("hi", stop_token_ids=[1, 1000])
    [asked] = engine.asked
    assert (asked.sampling.stop_token_ids, asked.sampling.ignore_eos) == (frozenset({5, 7}), True)
    assert asked.stop == (".",)  # not those that end a turn


@pytest.mark.parametrize(
    ("parameters", "sampled"),
    [
        ({}, False),
        ({"temperature": 0}, False),
        ({"temperature": 0.5}, True),
        ({"top_k": 3}, True),
        ({"top_k": 0, "top_p": 1.0, "min_p": 0.0}, False),
        ({"do_sample": True}, True),
        ({"do_sample": False, "temperature": 0.5}, False),
    ],
)
def test_when_it_samples(hello, parameters, sampled):
    model, engine = hello
    model.generate("x", **parameters)
    assert engine.asked[-1].sampling.do_sample is sampled


def test_the_models_defaults_hold_for_what_a_request_leaves_unset():
    model, engine = model_of(*HELLO, sampling={"temperature": 0.6, "top_p": 0.9, "stop": ["###"]})
    with model:
        model.generate("x", stop=".")
        model.chat("x", temperature=0)
        model.chat("x", ignore_eos=True)
        assert model.status().sampling == {"temperature": 0.6, "top_p": 0.9, "stop": ["###"]}
    first, second, third = engine.asked
    assert (first.sampling.do_sample, first.sampling.temperature, first.sampling.top_p) == (True, 0.6, 0.9)
    assert (first.stop, second.stop, third.stop) == ((".", "###"), ("###",), ())
    assert not second.sampling.do_sample


def test_best_of_gives_the_likeliest_and_counts_all():
    def sequence(index, *logprobs):
        tokens = tuple(TokenLogprob(65 + index, value) for value in logprobs)
        return TokenEvent(index, "ABC"[index], len(logprobs), "stop", tokens)

    model, engine = model_of(sequence(0, -3.0), sequence(1, -0.5, -0.7), sequence(2, -1.0))
    with model:
        answer = model.generate("x", best_of=3, n=2, temperature=1.0)
    assert engine.asked[0].sequences == 3
    assert [(c.index, c.text, c.logprobs) for c in answer.choices] == [(0, "B", None), (1, "C", None)]
    assert answer.usage.completion_tokens == 4


@pytest.mark.parametrize("parameters", [{"n": 2}, {"best_of": 2, "n": 1}], ids=str)
def test_what_was_cached_is_what_the_first_sequence_reused(parameters):
    """Check that reuse by the other sequences does not count: it would look as if nearly nothing had to be run."""
    logprob = (TokenLogprob(65, -0.5),)
    events = [TokenEvent(i, "A", 1, "stop", logprob, cached) for i, cached in enumerate((3, 9))]
    model, _ = model_of(*events)
    with model:
        assert model.generate("x", temperature=1.0, **parameters).usage.prompt_tokens_details.cached_tokens == 3
        if "n" in parameters and "best_of" not in parameters:
            chunks = list(model.generate_stream("x", temperature=1.0, **parameters))
            assert [chunk.usage.prompt_tokens_details.cached_tokens for chunk in chunks] == [3, 3]


def test_a_prompt_as_long_as_the_context_can_be_scored_but_not_continued():
    """Check a full context, because evaluations fill it to its last token."""
    model, engine = model_of(TokenEvent(0, "", 0, "length"))
    with model:
        assert model.generate("x" * 100, max_new_tokens=0, echo=True).text == "x" * 100
        assert engine.asked[0].max_new_tokens == 0
        with pytest.raises(ContextLengthExceeded, match="100"):
            model.generate("x" * 100, max_new_tokens=1)


def test_logprobs_name_their_tokens():
    model, _ = model_of(TokenEvent(0, "A", 1, "length", (TokenLogprob(65, -0.5, ((66, -0.25),)),)))
    with model:
        [token] = model.generate("x", logprobs=1).choices[0].logprobs.content
    assert token.model_dump() == {
        "token": "A",
        "bytes": [65],
        "logprob": -0.5,
        "top_logprobs": [{"token": "B", "bytes": [66], "logprob": -0.25}],
    }


def test_a_suffix_makes_a_prompt_that_fills_in_the_middle(hello, monkeypatch):
    marks = {"<fim_prefix>": 900, "<fim_suffix>": 901, "<fim_middle>": 902, "<|endoftext|>": 903}
    monkeypatch.setattr(ScriptedTokenizer, "get_vocab", lambda self: marks)
    model, engine = hello
    answer = model.generate("ab", suffix="y", echo=True, stop_token_ids=[7])
    model.generate([97, 98], suffix="y", ignore_eos=True)
    model.generate("ab", suffix="")
    whole, ids, plain = engine.asked
    assert whole.prompt_ids == ids.prompt_ids == (900, 97, 98, 901, 121, 902)
    assert whole.sampling.stop_token_ids == {900, 901, 902, 903, 7}
    assert (ids.sampling.stop_token_ids, plain.sampling.stop_token_ids) == (frozenset(), frozenset())
    assert plain.prompt_ids == (97, 98)
    assert (answer.text, answer.usage.prompt_tokens) == ("abhello", 6)
    with pytest.raises(ContextLengthExceeded, match="the prompt has 100 tokens, the model's context holds 100"):
        model.generate("x" * 50, suffix="y" * 47)
    with pytest.raises(InvalidRequest, match="token id 1000 is outside the vocabulary"):
        model.generate([1000], suffix="y")


def test_a_suffix_is_refused_by_name_where_no_middle_can_be_filled_in(hello):
    with pytest.raises(InvalidRequest, match="suffix: this model's tokenizer has no marks") as raised:
        hello[0].generate("ab", suffix="y")
    assert raised.value.param == "suffix"


@pytest.mark.parametrize("streamed", [True, False])
def test_logprobs_are_those_of_the_text_that_is_shown(streamed):
    parts = (TokenLogprob(233, -1.0, shown=3), TokenLogprob(233, -1.5, shown=3), TokenLogprob(233, -1.7, shown=3))
    tokens = (TokenLogprob(65, -0.5), *parts, TokenLogprob(66, -2.0, shown=0))
    model, _ = model_of(TokenEvent(0, "A", 1, None, tokens[:1]), TokenEvent(0, "", 4, "stop", tokens[1:]))
    with model:
        events = list(model.generate_stream("x", logprobs=0)) if streamed else [model.generate("x", logprobs=0)]
    listed = [token for event in events for token in event.choices[0].logprobs.content]
    assert [(token.token, token.bytes, token.logprob) for token in listed] == [
        ("A", [65], -0.5),
        ("\u00e9", [195, 169], -1.0),
        ("\ufffd", [195], -1.5),
    ]
    assert events[-1].usage.completion_tokens == 5


async def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(monkeypatch):
    model, engine = model_of(*HELLO)
    monkeypatch.setattr(model._prompts, "_least_tokens", lambda text, enough: len(text) // 10)
    monkeypatch.setattr(ScriptedTokenizer, "get_vocab", lambda self: {"[PREFIX]": 900, "[SUFFIX]": 901})
    assert model._prompts._fill_in is not None
    tokenised = []
    monkeypatch.setattr(ScriptedTokenizer, "__call__", lambda self, text, **_: tokenised.append(text))
    async with model:
        for ask, param in (
            (lambda: model.agenerate("1" * 2000), "prompt"),
            (lambda: model.agenerate([5] * 101), "prompt"),
            (lambda: model.agenerate("1", suffix="1" * 2000), "prompt"),
            (lambda: model.agenerate([5] * 99, suffix="1" * 20), "prompt"),
            (lambda: model.agenerate([5] * 101, suffix="1"), "prompt"),
            (lambda: model.achat("1" * 2000), "messages"),
            (lambda: model.aembed("1" * 2000), "texts"),
            (lambda: model.aembed([[5] * 101]), "texts"),
        ):
            with pytest.raises(ContextLengthExceeded, match="holds 100") as raised:
                await ask()
            assert raised.value.param == param
    assert not tokenised
    assert not engine.asked


async def test_a_long_text_is_tokenised_beside_the_short_ones(monkeypatch):
    """Check that short prompts do not wait for long ones, and that only so many long ones wait."""
    model, _ = model_of(*HELLO)
    begun, gate = threading.Event(), threading.Event()
    ids = ScriptedTokenizer.__call__

    def slow(self, text, **options):
        if len(text) > LONG:
            begun.set()
            assert gate.wait(20)
        return ids(self, text, **options)

    monkeypatch.setattr(ScriptedTokenizer, "__call__", slow)
    async with model:
        long = [asyncio.create_task(model.atokenize("a" * (LONG + 1))) for _ in range(LONG_WAITING)]
        assert await asyncio.to_thread(begun.wait, 20)
        assert await model.atokenize("ab") == [97, 98]
        assert (await model.agenerate("ab")).text == "hello"
        with pytest.raises(QueueFull, match="long prompts"):
            await model.achat("b" * (LONG + 1))
        gate.set()
        assert {len(ids) for ids in await asyncio.gather(*long)} == {LONG + 1}


@pytest.mark.parametrize("key", ["9" * 5000, "1000", "1" * 19, "\u0661" * 30])
async def test_a_bias_of_a_token_that_cannot_be_is_refused_by_name(hello, key):
    with pytest.raises(InvalidRequest, match=r"logit_bias: .*(is outside the vocabulary of 1000|is not a token id)"):
        await hello[0].agenerate("ab", logit_bias={key: 1.0})


async def test_texts_to_embed_take_turns_for_the_places_of_a_small_queue(monkeypatch):
    model, engine = model_of(TokenEvent(0, "", 0, "stop", embedding=(1.0,)))
    start, running = ScriptedEngine.start, set()

    def full(self, request, outlet):
        if len(running) == 2:
            raise QueueFull("full")
        running.add(request.id)
        ended = outlet.ended
        outlet.ended = lambda error: (running.discard(request.id), ended(error))
        start(self, request, outlet)

    monkeypatch.setattr(ScriptedEngine, "start", full)
    async with model:
        assert len((await model.aembed(["ab"] * 100)).data) == 100
        assert len(await model.agenerate(["ab"] * 100)) == 100
    assert len(engine.asked) == 200
