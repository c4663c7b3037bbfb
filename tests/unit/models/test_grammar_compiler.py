"""Without these tests, answers could have another form than requested, or a single request could stop a server."""

import itertools
import json
import threading
import time

import psutil
import pytest
import transformers
from families import END, VOCABULARY, copied_tokenizer

from run_gpt.errors import InvalidRequest, QueueFull
from run_gpt.models import grammar as module
from run_gpt.models.grammar import MAX_LARK, MAX_SOURCE, GrammarCompiler
from run_gpt.models.trial import Trial

END_IDS = (2, 4)
TOO_MUCH = {
    "a large multiple": ("json_schema", {"type": "integer", "multipleOf": 99999989}),
    "multiples that make a large one": ("json_schema", {"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}),
    "an intersection of many patterns": (
        "json_schema",
        {"type": "string", "allOf": [{"pattern": f"a.{{{i}}}b"} for i in range(1, 40)]},
    ),
    "memory": ("regex", "(a{1000}){1000}"),
    "beside a token": (
        "lark",
        f'start: <[{VOCABULARY - 1}]> a\na: %json {{"type": "integer", "multipleOf": 99999989}}',
    ),
}
LARGE = {
    "an enum": ("json_schema", {"enum": [f"value {i}" for i in range(3000)]}),
    "an object": ("json_schema", {"properties": {f"property {i}": {"type": "string"} for i in range(1000)}}),
    "a tree": ("json_schema", {"$defs": {"a": {"properties": {"a": {"$ref": "#/$defs/a"}}}}, "$ref": "#/$defs/a"}),
    "a table": ("json_schema", {"type": "array", "maxItems": 1000, "items": {"type": "array", "maxItems": 1000}}),
    "a long text": ("json_schema", {"type": "string", "minLength": 100000}),
    "classes of characters": ("regex", r"(\p{L}|\p{N}\p{M}?){1,2000}"),
    "what costs other libraries exponential time": ("regex", "(a+)+b"),
}
REFUSED = {
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "not": {"not": {"type": "string"}},
    "contains": {"properties": {"a": {"contains": {}}}},
    "dependentRequired": {"dependentRequired": {"a": ["b"]}},
    "unevaluatedProperties": {"unevaluatedProperties": False},
    "no-such-format": {"type": "string", "format": "no-such-format"},
    "oneOf": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "x-guidance": {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}},
    "does not fetch": {"$ref": "http://127.0.0.1:9/schema.json"},
    "no text": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "Invalid type: wrong": {"type": "wrong"},
    "look-around": {"type": "string", "pattern": "(?=a)b"},
    "greater than maximum": {"type": "integer", "minimum": 3, "maximum": 2},
}


@pytest.fixture(scope="module")
def tokenizer():
    return copied_tokenizer()


@pytest.fixture(scope="module")
def compiler(tokenizer):
    compiler = GrammarCompiler(tokenizer, VOCABULARY, END_IDS)
    yield compiler
    compiler.close()


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def accepts(grammar, tokenizer, text):
    """Return True if the grammar allows an answer of this text, and its end."""
    matcher = grammar.matcher()
    for token_id in ids(tokenizer, text):
        allowed = matcher.allows(token_id)
        assert allowed == bool(matcher.mask()[token_id])
        if not allowed:
            return False
        matcher.advance(token_id)
    assert [matcher.allows(end) for end in END_IDS] == [bool(matcher.mask()[end]) for end in END_IDS]
    return matcher.allows(END_IDS[0])


@pytest.mark.parametrize(
    ("kind", "source", "good", "bad"),
    [
        (
            "json_object",
            "",
            ['{"a": [1, {"b": null}]}', "{}", '{\n  "a": 1\n}'],
            ["[1]", '{"a": 1', " {}", "{}\n"],
        ),
        ("json_schema", '{"type": "integer", "minimum": 7}', ["7", "123"], ["6", "7.0", "-8"]),
        ("json_schema", '{"enum": ["a", {"b": 1}]}', ['"a"', '{"b": 1}', '{"b":1}'], ["a", '{"b": 2}']),
        ("regex", r"\d{3}-\d{4}", ["555-1234"], ["5555-123", "x555-1234"]),
        ("regex", 'a"b\n/[c/]', ['a"b\n/c'], ["a"]),
        (
            "choice",
            '["yes", "no", "ja\\"\\n", "yes!", "\\u00e9"]',
            ["yes", "no", 'ja"\n', "yes!", "é"],
            ["ye"],
        ),
        ("lark", 'start: "a" b+\nb: "b" | "c"', ["abcb"], ["a"]),
    ],
)
def test_each_kind_allows_what_it_says_and_nothing_else(compiler, tokenizer, kind, source, good, bad):
    grammar = compiler.compile(kind, source)
    assert [accepts(grammar, tokenizer, text) for text in good] == [True] * len(good)
    assert [accepts(grammar, tokenizer, text) for text in bad] == [False] * len(bad)


def test_properties_come_in_the_order_of_the_schema(compiler, tokenizer):
    schema = {"properties": {"z": {"type": "null"}, "a": {"type": "null"}}, "required": ["z", "a"], "type": "object"}
    grammar = compiler.compile("json_schema", json.dumps(schema))
    assert accepts(grammar, tokenizer, '{"z": null, "a": null}')
    assert not accepts(grammar, tokenizer, '{"a": null, "z": null}')


CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
PLACE = {
    "$defs": {"city": CITY, "land": {"properties": {"land": {"type": "string"}}}},
    "allOf": [{"$ref": "#/$defs/city"}, {"$ref": "#/$defs/land"}],
}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (CITY, '{"city": "Rome"}', '{"city": "Rome", "invented": 1}'),
        ({**CITY, "additionalProperties": True}, '{"city": "Rome", "invented": 1}', '{"invented": 1}'),
        ({**CITY, "patternProperties": {"^x-": {}}}, '{"city": "Rome", "x-a": 1}', "{}"),
        ({"type": "object"}, '{"any": [1]}', "[1]"),
        (PLACE, '{"city": "Rome", "land": "Italy"}', '{"city": "Rome", "land": "Italy", "invented": 1}'),
        ({"type": "array", "items": CITY}, '[{"city": "Rome"}]', '[{"city": "Rome", "invented": 1}]'),
    ],
)
def test_objects_are_closed_unless_their_schema_opens_them(compiler, tokenizer, schema, good, bad):
    grammar = compiler.compile("json_schema", json.dumps(schema))
    assert accepts(grammar, tokenizer, good)
    assert not accepts(grammar, tokenizer, bad)


def test_a_time_has_no_leap_second_which_validators_refuse(compiler, tokenizer):
    grammar = compiler.compile("json_schema", '{"type": "string", "format": "time"}')
    assert accepts(grammar, tokenizer, '"21:50:59.07+01:33"')
    assert not accepts(grammar, tokenizer, '"21:50:60.07+01:33"')


@pytest.mark.parametrize("space", [" ", "\n", "\t", "\n  \n"])
def test_a_model_cannot_go_on_in_white_space(compiler, tokenizer, space):
    """A small model that is unsure repeats itself: it would fill its whole answer with spaces."""
    matcher = compiler.compile("json_object").matcher()
    count = 0
    for token_id in ids(tokenizer, "{" + 100 * space):
        if not matcher.allows(token_id):
            break
        matcher.advance(token_id)
        count += 1
    assert count < 50


def test_only_a_complete_answer_may_end_and_then_it_must(compiler, tokenizer):
    matcher = compiler.compile("choice", '["yes"]').matcher()
    for token_id in ids(tokenizer, "yes"):
        assert not any(matcher.allows(end) or matcher.mask()[end] for end in END_IDS)
        matcher.advance(token_id)
    assert matcher.mask().nonzero().flatten().tolist() == list(END_IDS)
    assert all(matcher.allows(end) for end in END_IDS)
    assert not matcher.allows(9)


def test_an_end_that_is_a_text_like_others_does_not_cut_an_answer(tokenizer):
    """Some models have an end token that can occur in any text."""
    [plain] = ids(tokenizer, "a")
    compiler = GrammarCompiler(tokenizer, VOCABULARY, [plain])
    matcher = compiler.compile("regex", "b[a-z]{2}").matcher()
    matcher.advance(ids(tokenizer, "b")[0])
    assert not matcher.allows(plain)
    assert not matcher.mask()[plain]
    compiler.close()


def test_special_tokens_are_no_text_but_a_grammar_may_name_them(compiler, tokenizer):
    special = [tokenizer.convert_tokens_to_ids(name) for name in ("<pad>", "<s>", END, "<|im_start|>", "<|USER|>")]
    mask = compiler.compile("regex", ".*").matcher().mask()
    assert not mask[[token for token in special if token not in END_IDS]].any()
    assert mask.sum() > 200
    named = compiler.compile("lark", 'start: <|USER|> "a"').matcher()
    assert named.mask().nonzero().flatten().tolist() == [tokenizer.convert_tokens_to_ids("<|USER|>")]


def test_a_schema_inside_a_grammar_is_held_like_one_alone(compiler, tokenizer):
    rule = '%json {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'
    grammar = compiler.compile("lark", f'start: "<call>" arguments "</call>"\narguments: {rule}')
    assert accepts(grammar, tokenizer, '<call>{"a": 1}</call>')
    assert not accepts(grammar, tokenizer, '<call>{"a": 1.5}</call>')
    with pytest.raises(InvalidRequest, match="uniqueItems"):
        compiler.compile("lark", f"start: %json {json.dumps(REFUSED['uniqueItems'])}")
    lenient = json.dumps(REFUSED["x-guidance"])
    with pytest.raises(InvalidRequest, match="uniqueItems"):
        compiler.compile("lark", f"start: %json {lenient}")


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_kept_is_refused_and_named(compiler, reason):
    with pytest.raises(InvalidRequest, match=reason) as caught:
        compiler.compile("json_schema", json.dumps(REFUSED[reason]))
    assert caught.value.param == "response_format"
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    [
        ("json_schema", "true", "not an object"),
        ("json_schema", '{"a":', "not JSON"),
        ("json_schema", '{"a": NaN}', "expected value"),
        ("json_schema", '{"a":' * 10000 + "1" + "}" * 10000, "not JSON"),
        ("json_schema", '{"items":' * 500 + "{}" + "}" * 500, "nested too deeply"),
        ("regex", "a{2,1}", "the start must be <= the end"),
        ("regex", "[z", "unclosed character class"),
        ("regex", "(" * 5000 + ")" * 5000, "nest"),
        ("regex", "a" * (MAX_SOURCE + 1), f"{MAX_SOURCE + 1} bytes, the limit is {MAX_SOURCE}"),
        ("lark", "a" * (MAX_LARK + 1), f"the grammar has {MAX_LARK + 1} bytes, the limit is {MAX_LARK}"),
        ("choice", "[]", "at least one"),
        ("choice", '["a", 1]', "list of texts"),
        ("choice", '["\\ud800"]', "hex escape"),
        ("lark", "start: start", "no text"),
        ("lark", "start: <|nobody|>", "unknown special token"),
    ],
)
def test_what_is_no_grammar_is_refused_in_a_line(compiler, kind, source, reason):
    with pytest.raises(InvalidRequest, match=reason) as caught:
        compiler.compile(kind, source)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("what", TOO_MUCH)
def test_what_would_take_minutes_is_refused_within_seconds_and_stops_nobody(compiler, what):
    """Without this, one request could occupy a core, or the memory, of a server as long as the server runs."""
    kind, source = TOO_MUCH[what]
    compiler.compile("regex", f"before {what}")
    beats, stop = [], threading.Event()

    def beat():
        while not stop.wait(0.001):
            beats.append(time.monotonic())

    thread = threading.Thread(target=beat)
    thread.start()
    began = time.monotonic()
    with pytest.raises(InvalidRequest, match="too long or too much memory"):
        compiler.compile(kind, source if isinstance(source, str) else json.dumps(source))
    assert time.monotonic() - began < 15  # 10, and the delay of a busy machine
    stop.set()
    thread.join()
    assert max(later - earlier for earlier, later in itertools.pairwise(beats)) < 1  # the GIL was free
    assert accepts(compiler.compile("choice", json.dumps(["a", what])), compiler._tokenizer, "a")


@pytest.mark.parametrize("what", LARGE)
def test_large_grammars_are_compiled(compiler, what):
    kind, source = LARGE[what]
    compiled = compiler.compile(kind, source if isinstance(source, str) else json.dumps(source))
    assert compiled.matcher().mask().any()


def test_what_was_compiled_is_kept_and_what_was_not_used_for_long_goes(compiler, monkeypatch):
    monkeypatch.setattr(module, "CACHED", 3)
    compiled = [compiler.compile("regex", f"a{i}") for i in range(3)]
    assert compiler.compile("regex", "a0") is compiled[0]
    assert compiler.submit("regex", "a0").result(0) is compiled[0]
    compiler.compile("regex", "a3")
    assert compiler.compile("regex", "a0") is compiled[0]
    assert compiler.compile("regex", "a1") is not compiled[1]
    assert compiler.compile("choice", '["a0"]') is not compiled[0]


def test_what_was_compiled_for_one_space_is_not_kept_for_another(compiler):
    """The time of a request would tell one user that another one has lately sent the same schema."""
    alices = compiler.compile("regex", "a9", "alice/")
    assert compiler.compile("regex", "a9", "bob/") is not alices
    assert compiler.submit("regex", "a9", "alice/").result(0) is alices
    assert compiler.compile("json_object", "", "bob/") is compiler.compile("json_object"), "it holds nothing of anybody"


def test_what_was_expensive_to_compile_leaves_no_room_for_others(compiler, monkeypatch):
    """Such grammars are large: a cache of many of them would take the model's memory."""
    monkeypatch.setattr(module, "CACHED_SECONDS", 0.0)
    first = compiler.compile("regex", "a")
    assert compiler.compile("regex", "a") is first
    compiler.compile("regex", "b")
    assert compiler.compile("regex", "a") is not first


def test_rows_of_a_grammar_share_nothing(compiler, tokenizer):
    grammar = compiler.compile("choice", '["ab", "cd"]')
    one, other = grammar.matcher(), grammar.matcher()
    one.advance(ids(tokenizer, "a")[0])
    assert other.allows(ids(tokenizer, "c")[0])
    with pytest.raises(InvalidRequest):
        other.advance(ids(tokenizer, "x")[0])
    one.advance(ids(tokenizer, "b")[0])
    assert one.allows(END_IDS[0])
    assert grammar.matcher().allows(ids(tokenizer, "c")[0])


def test_a_matcher_that_cannot_go_on_says_why(compiler, tokenizer):
    matcher = compiler.compile("choice", '["ab"]').matcher()
    with pytest.raises(InvalidRequest, match="cannot go on") as caught:
        matcher.advance(ids(tokenizer, "x")[0])
    assert caught.value.param == "response_format"
    with pytest.raises(InvalidRequest, match="cannot go on"):
        matcher.mask()


def test_token_ids_beyond_the_vocabulary_are_not_allowed(compiler):
    """Models have more logits than tokens."""
    matcher = compiler.compile("regex", ".*").matcher()
    assert not matcher.allows(VOCABULARY + 5)
    assert len(matcher.mask()) == VOCABULARY
    assert matcher.mask().any()


def test_a_model_whose_tokenizer_is_not_one_for_grammars_says_so(tokenizer):
    class Slow(transformers.PythonBackend):
        vocab_size = 10

        def get_vocab(self):
            return {}

    for compiler, reason in (
        (GrammarCompiler(Slow(), 10, END_IDS), "fast tokenizers"),
        (GrammarCompiler(tokenizer, VOCABULARY, ()), "no token that ends"),
    ):
        for _ in range(2):
            with pytest.raises(InvalidRequest, match=f"structured output is not available with this model.*{reason}"):
                compiler.compile("json_object")
        compiler.close()


async def test_compiling_takes_threads_of_its_own_and_few(compiler, monkeypatch):
    """Otherwise, the event loop or the engine would stand still during a compilation."""
    names, gate = [], threading.Event()
    waits = threading.Semaphore(0)

    def passes(self, grammar):
        names.append(threading.current_thread().name)
        waits.release()
        assert gate.wait(10)
        return True

    monkeypatch.setattr(Trial, "passes", passes)
    monkeypatch.setattr(compiler, "_room", threading.BoundedSemaphore(4))
    futures = [compiler.submit("regex", f"a{i}") for i in range(4)]
    with pytest.raises(QueueFull, match="try again"):
        compiler.submit("regex", "b")
    assert all(waits.acquire(timeout=10) for _ in range(2))
    gate.set()
    assert all(future.result(10).matcher().mask().any() for future in futures)
    assert {name.rpartition("_")[0] for name in names} == {"rungpt-grammar"}
    assert len(set(names)) <= 2
    assert compiler.submit("regex", "b").result(10)


def test_nothing_is_left_running_when_it_is_closed(tokenizer):
    before = set(psutil.Process().children())
    compiler = GrammarCompiler(tokenizer, VOCABULARY, END_IDS)
    compiler.start()
    kind, source = TOO_MUCH["a large multiple"]
    waiting = compiler.submit(kind, json.dumps(source))
    compiler.compile("json_object")
    began = time.monotonic()
    assert set(psutil.Process().children()) - before
    compiler.close()
    assert time.monotonic() - began < 5
    assert not set(psutil.Process().children()) - before
    assert waiting.cancelled() or waiting.exception(0) is not None


def test_a_trial_that_died_is_replaced(compiler):
    compiler.compile("regex", "one")
    process = compiler._trial._idle[-1]
    process._popen.kill()
    process._popen.wait()
    assert compiler.compile("regex", "another")
