"""Without these tests answers could fail to parse, or change others. Grammars are real, weights real or random."""

import asyncio
import itertools
import json
import re

import jsonschema
import pytest
from families import FAMILIES, build, copied_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import run_gpt
from run_gpt.config import EngineConfig
from run_gpt.engine.engine import BatchEngine
from run_gpt.engine.request import Request, SamplingParams
from run_gpt.engine.runners.choice import choose_runner
from run_gpt.errors import InvalidRequest
from run_gpt.models import render_chat
from run_gpt.models.grammar import GrammarCompiler

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "year_of_birth": {"type": "integer", "minimum": 1900, "maximum": 2020},
        "likes": {"type": "array", "items": {"enum": ["tea", "rain", "jazz"]}, "maxItems": 3},
    },
    "required": ["name", "year_of_birth", "likes"],
    "additionalProperties": False,
}
PROMPT = "Describe a person: name, year of birth and likes, as JSON."
SAMPLINGS = [
    {},
    {"do_sample": True, "temperature": 1.0},
    {"do_sample": True, "temperature": 2.0, "top_p": 0.9},
    {"do_sample": True, "temperature": 1.3, "top_k": 20, "repetition_penalty": 1.1, "frequency_penalty": 0.2},
]
number = itertools.count()


class Served:
    """Engine with the grammar compiler, tokenizer and prompt of its model."""

    def __init__(self, engine, tokenizer, prompt_ids, end_ids):
        self.engine, self.tokenizer, self.prompt_ids = engine, tokenizer, tuple(prompt_ids)
        self.compiler = GrammarCompiler(tokenizer, len(tokenizer), end_ids)

    async def ask(self, grammar=None, tokens=300, sequences=1, prompt_ids=None, stop=(), **sampling):
        """Run a request; returns [(text, finish reason)] of its sequences, joined from streamed events."""
        request = Request(
            id=f"structured {next(number)}",
            prompt_ids=prompt_ids or self.prompt_ids,
            max_new_tokens=tokens,
            grammar=grammar,
            sequences=sequences,
            stop=stop,
            sampling=SamplingParams(**sampling),
        )
        texts, reasons = [""] * sequences, [None] * sequences
        async for event in self.engine.submit(request):
            texts[event.index] += event.text
            reasons[event.index] = event.finish_reason
        return list(zip(texts, reasons, strict=True))

    def compile(self, kind, source=""):
        return self.compiler.compile(kind, source if isinstance(source, str) else json.dumps(source))


@pytest.fixture(scope="module")
def default_model():
    with run_gpt.create_model() as model:
        ids = render_chat(model.tokenizer, [{"role": "user", "content": PROMPT}])
        served = Served(model._engine, model.tokenizer, ids, model._engine._runner.end_ids)
        yield served
        served.compiler.close()
        model._engine.scheduler.check()


@pytest.fixture(scope="module")
def random_model():
    """Serve random weights, which know no JSON. The vocabulary has single bytes, so answers contain any characters."""
    tokenizer, runner = copied_tokenizer(), choose_runner(build(FAMILIES["llama"]), EngineConfig(runner="generic"))

    def decode(ids):
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    engine = BatchEngine(runner, decode, EngineConfig(max_running=16))
    served = Served(engine, tokenizer, tokenizer(PROMPT)["input_ids"], runner.end_ids)
    yield served
    served.compiler.close()
    engine.shutdown()
    engine.scheduler.check()


@pytest.fixture(params=["default_model", "random_model"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
async def test_an_answer_validates_greedy_and_drawn(model, sampling):
    grammar = model.compile("json_schema", PERSON)
    answers = await asyncio.gather(*(model.ask(grammar, **sampling, seed=seed) for seed in range(6)))
    for [(text, reason)] in answers:
        assert reason == "stop"
        jsonschema.validate(json.loads(text), PERSON)
    assert not sampling or len({text for [(text, _)] in answers}) > 1


async def test_an_object_parses_or_is_cut_and_says_so(model):
    """Check both ends: the grammar of a JSON object does not force a model to end it."""
    answers = [
        *await model.ask(model.compile("json_object"), sequences=4, do_sample=True, temperature=1.5, seed=1),
        *await model.ask(model.compile("json_object")),
    ]
    for text, reason in answers:
        assert text.startswith("{")
        if reason == "stop":
            assert isinstance(json.loads(text), dict)
        else:
            assert reason == "length"
            with pytest.raises(ValueError, match=r"."):
                json.loads(text)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
async def test_a_regex_a_choice_and_a_grammar_hold(model, sampling):
    answers = await asyncio.gather(
        model.ask(model.compile("regex", r"\d{3}-\d{4} [a-f]{2,9}"), sequences=3, **sampling, seed=3),
        model.ask(model.compile("choice", ["certainly", "certainly not", "né"]), sequences=3, **sampling, seed=3),
        model.ask(
            model.compile("lark", 'start: "<call>" a "</call>"\na: /[0-9]{1,3}/'), sequences=3, **sampling, seed=3
        ),
    )
    patterns = (r"\d{3}-\d{4} [a-f]{2,9}", "certainly|certainly not|né", "<call>[0-9]{1,3}</call>")
    for pattern, sequences in zip(patterns, answers, strict=True):
        for text, reason in sequences:
            assert reason == "stop"
            assert re.fullmatch(pattern, text), text


async def test_a_cut_answer_says_length_and_is_the_beginning_of_the_whole(model):
    grammar = model.compile("json_schema", PERSON)
    [(whole, _)] = await model.ask(grammar)
    [(cut, reason)] = await model.ask(grammar, tokens=9)
    assert reason == "length"
    assert whole.startswith(cut)
    assert len(cut) < len(whole)


async def test_neighbours_without_a_grammar_do_not_change(model):
    """Check greedy and seeded sequences, alone and beside sequences of several grammars that start and end."""
    plain = [{}, {"do_sample": True, "temperature": 1.2, "seed": 5}, {"repetition_penalty": 1.2}]
    alone = [await model.ask(tokens=40, **sampling) for sampling in plain]
    grammars = [model.compile("json_schema", PERSON), model.compile("choice", ["yes", "no"])]
    [(constrained, _)] = await model.ask(grammars[0], do_sample=True, seed=8)
    busy = await asyncio.gather(
        *(model.ask(tokens=40, **sampling) for sampling in plain),
        *(model.ask(grammar, do_sample=True, temperature=2.0, seed=i) for i, grammar in enumerate(grammars * 3)),
        model.ask(grammars[0], do_sample=True, seed=8),
    )
    assert busy[:3] == alone
    assert busy[-1] == [(constrained, "stop")]


async def test_a_cancelled_request_leaves_its_grammar_as_it_was(model):
    grammar = model.compile("json_schema", PERSON)
    [whole] = await model.ask(grammar)
    events = model.engine.submit(Request(id="goes", prompt_ids=model.prompt_ids, max_new_tokens=99, grammar=grammar))
    await anext(events)
    await events.aclose()
    assert await model.ask(grammar) == [whole]


async def test_names_of_properties_save_steps(default_model):
    grammar = default_model.compile("json_schema", PERSON)
    before = default_model.engine.stats()
    [(_, reason)] = await default_model.ask(grammar)
    after = default_model.engine.stats()
    assert reason == "stop"
    if default_model.engine._runner.cheap_tokens > 1:
        assert after.steps - before.steps < after.generated_tokens - before.generated_tokens - 4


def _some(kind, **keywords):
    """Return schemas of this type with these keywords; upper bounds are always present."""
    upper = {name: values for name, values in keywords.items() if name.startswith("max")}
    others = {name: values for name, values in keywords.items() if name not in upper}
    return st.fixed_dictionaries({"type": st.just(kind), **upper}, optional=others)


# Every text, number and list has an upper bound; else a model with random weights would never end.
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=3,
)
PATTERNS = ("^[a-c]{1,3}[0-9]$", "^(x|yz){2,4}$", "[0-9]{2,5}")
LEAVES = st.one_of(
    _some("string", minLength=st.integers(0, 4), maxLength=st.integers(4, 12)),
    _some("integer", minimum=st.integers(-1000, 0), maximum=st.integers(0, 1000), multipleOf=st.integers(1, 7)),
    _some("number", minimum=st.integers(-9, 0), maximum=st.integers(0, 9)),
    _some(
        "string", pattern=st.sampled_from(["^[a-c]{1,3}[0-9]$", "^(x|yz){2,4}$", "^[0-9]{2,5}$"]), maxLength=st.just(9)
    ),
    st.sampled_from(["date", "time", "ipv4", "uuid"]).map(lambda name: {"type": "string", "format": name}),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["boolean", "null"]}]),
    st.lists(VALUES, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    VALUES.map(lambda value: {"const": value}),
)
NAMES = st.text('abcxyz _$é"\\', min_size=1, max_size=6)
UNSUPPORTED = st.sampled_from([{"uniqueItems": True}, {"not": {"const": 3}}, {"minContains": 2}])


def _larger(inner):
    """Return lists, objects and choices of smaller schemas; some have a keyword that is refused."""
    objects = st.builds(
        lambda properties, skipped, extra: {
            "type": "object",
            "properties": properties,
            "required": [name for i, name in enumerate(properties) if i not in skipped],
            "additionalProperties": False,
            **extra,
        },
        st.dictionaries(NAMES, inner, max_size=4),
        st.sets(st.integers(0, 3)),
        st.one_of(*[st.just({})] * 12, UNSUPPORTED),
    )
    lists = st.builds(
        lambda items, least, more: {"type": "array", "items": items, "minItems": least, "maxItems": least + more},
        inner,
        st.integers(0, 2),
        st.integers(0, 2),
    )
    pairs = st.builds(
        lambda some: {"type": "array", "prefixItems": some, "items": False, "minItems": len(some)},
        st.lists(inner, min_size=1, max_size=3),
    )
    return objects | lists | pairs | st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=3))


SCHEMAS = st.recursive(LEAVES, _larger, max_leaves=6)


def test_answers_to_random_schemas_validate(random_model):
    """Check the broadest promise: for any schema, the answer parses and validates, or the request is refused."""
    counts = {"stop": 0, "length": 0, "refused": 0}
    reasons = set()

    async def answer(schemas):
        asked = []
        for schema in schemas:
            jsonschema.Draft202012Validator.check_schema(schema)
            try:
                asked.append((schema, random_model.compile("json_schema", schema)))
            except InvalidRequest as error:
                counts["refused"] += 1
                reasons.add(re.sub(r"[^A-Za-z]+", " ", error.message)[:60])
        texts = await asyncio.gather(
            *(
                random_model.ask(grammar, tokens=400, do_sample=i % 3 > 0, temperature=1 + i % 2, seed=i)
                for i, (_, grammar) in enumerate(asked)
            )
        )
        for (schema, _), [(text, reason)] in zip(asked, texts, strict=True):
            counts[reason] += 1
            if reason == "stop":
                checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
                jsonschema.Draft202012Validator(schema, format_checker=checker).validate(json.loads(text))

    @settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(SCHEMAS, min_size=8, max_size=8))
    def validate(schemas):
        asyncio.run(answer(schemas))

    validate()
    print(counts, reasons)
    total = sum(counts.values())
    assert total >= 100
    assert counts["refused"] < 0.25 * total
    assert counts["stop"] > 0.7 * total
