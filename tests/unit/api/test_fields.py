"""Fields of requests that are refused, hints, or other servers' words. A wrong class breaks programs."""

from typing import Any

import pytest

from run_gpt.api.fields import MOST_NAME, MOST_NAMES, ignored_header
from run_gpt.api.openai.chat import ChatCompletionRequest
from run_gpt.api.openai.completions import CompletionRequest
from run_gpt.api.openai.embeddings import EmbeddingRequest
from run_gpt.api.openai.responses import ResponseRequest
from run_gpt.api.schema import ChatRequest, GenerateRequest
from run_gpt.errors import InvalidRequest

HI = [{"role": "user", "content": "hi"}]
KINDS: list[tuple[Any, dict[str, Any]]] = [
    (ChatCompletionRequest, {"messages": HI}),
    (CompletionRequest, {"prompt": "hi"}),
    (ResponseRequest, {"input": "hi"}),
    (EmbeddingRequest, {"input": "hi"}),
]
SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}


def chat(**fields: Any) -> ChatRequest:
    (native,) = ChatCompletionRequest.parse({"messages": HI, **fields}).natives()
    return native


def text(**fields: Any) -> GenerateRequest:
    (native,) = CompletionRequest.parse({"prompt": "hi", **fields}).natives()
    return native


def response(**fields: Any) -> ChatRequest:
    (native,) = ResponseRequest.parse({"input": "hi", **fields}).natives()
    return native


@pytest.mark.parametrize(("kind", "body"), KINDS)
def test_hints_are_taken_and_named_unless_they_ask_for_what_happens(kind: Any, body: dict[str, Any]) -> None:
    for name, entry in kind.FIELDS.hints.items():
        for value in ("x", 5, {"a": 1}, ["x"], True):
            if entry.grants(value):
                continue
            request = kind.parse({**body, name: value})
            assert request.ignored == (name,)
            assert request.natives() == kind.parse(body).natives()
            with pytest.raises(InvalidRequest, match=f"^{name}: .*--strict-fields") as refused:
                kind.parse({**body, name: value}, rules="strict")
            assert refused.value.param == name
        for value in (*entry.granted, None, [], {}):
            assert kind.parse({**body, name: value}, rules="strict").ignored == ()


@pytest.mark.parametrize(("kind", "body"), KINDS)
def test_an_unknown_field_is_refused_with_the_nearest_names_or_ignored_by_choice(kind: Any, body: Any) -> None:
    for rules in ("usual", "strict"):
        with pytest.raises(
            InvalidRequest, match=r"^usre: this field is not known here: did you mean user.*\?$"
        ) as raised:
            kind.parse({**body, "usre": 1}, rules=rules)
        assert raised.value.param == "usre"
    request = kind.parse({**body, "usre": 1, "x\r\ny, é": 2}, rules="lenient")
    assert request.ignored == ("usre", "x%0D%0Ay%2C%20%C3%A9")
    assert request.natives() == kind.parse(body).natives()


def test_the_header_is_bounded() -> None:
    fields = {f"{i}-{'é' * 1000}": 1 for i in range(1000)}
    request = ChatCompletionRequest.parse({"messages": HI, **fields}, rules="lenient")
    (value,) = ignored_header(request.ignored).values()
    assert len(value) <= MOST_NAMES * (MOST_NAME + 2)
    assert value.isascii()


def test_hints_inside_messages_tools_and_parts_are_taken_and_named_once() -> None:
    part = {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}
    messages = [{"role": "user", "content": [part], "id": "m1"}] * 3
    function = {"name": "f", "parameters": SCHEMA, "defer_loading": True}
    tool = {"type": "function", "function": function, "cache_control": {"type": "ephemeral"}}
    request = ChatCompletionRequest.parse({"messages": messages, "tools": [tool]})
    assert set(request.ignored) == {
        *("messages.content.cache_control", "messages.id", "tools.cache_control", "tools.function.defer_loading"),
    }
    assert [message.content for message in request.messages] == ["hi"] * 3
    with pytest.raises(InvalidRequest, match=r"^messages\[0\]\.content\[0\]\.cache_control: .*--strict-fields"):
        ChatCompletionRequest.parse({"messages": [{"role": "user", "content": [part]}]}, rules="strict")


@pytest.mark.parametrize(
    ("content", "param"),
    [
        ([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}], "[1].type"),
        ([{"type": "text", "text": "a"}, {"type": "text"}], "[1].text"),
        ([{"type": "text", "text": "a", "colour": 1}], "[0].colour"),
        (["a"], "[0]"),
        ([{"type": "text", "text": "a"}] * 1025, ""),
    ],
)
def test_a_part_of_a_content_is_named_by_its_path(content: Any, param: str) -> None:
    for kind, field in ((ChatCompletionRequest, "messages"), (ResponseRequest, "input")):
        with pytest.raises(InvalidRequest) as raised:
            kind.parse({field: [*HI, {"role": "user", "content": content}]})
        assert raised.value.param == f"{field}[1].content{param}"
        assert raised.value.message.startswith(raised.value.param)


@pytest.mark.parametrize("native", [chat, text])
@pytest.mark.parametrize(
    ("fields", "meant"),
    [
        ({"ignore_eos": True, "min_tokens": 3}, {"ignore_eos": True, "min_new_tokens": 3}),
        ({"stop_token_ids": [1, 2]}, {"stop_token_ids": [1, 2]}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"max_tokens": -1}, {"max_new_tokens": 2**31 - 1}),
        ({"n_predict": 7}, {"max_new_tokens": 7}),
        ({"n_predict": 7, "max_tokens": 7}, {"max_new_tokens": 7}),
        ({"max_new_tokens": -1}, {"max_new_tokens": 2**31 - 1}),
        ({"repeat_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"prompt_cache_key": "k"}, {"prompt_cache_key": "k"}),
        ({"cache_prompt": True, "cache_salt": "s"}, {"cache_salt": "s"}),
        ({"skip_special_tokens": True, "detokenize": True, "use_beam_search": False}, {}),
    ],
    ids=str,
)
def test_words_of_other_servers_mean_ours(native: Any, fields: dict[str, Any], meant: dict[str, Any]) -> None:
    request = native(**fields)
    assert {name: getattr(request, name) for name in meant} == meant


@pytest.mark.parametrize("native", [chat, text])
@pytest.mark.parametrize(
    ("fields", "kind", "source"),
    [
        ({"guided_json": SCHEMA}, "json_schema", None),
        ({"guided_json": '{"type": "object"}'}, "json_schema", '{"type": "object"}'),
        ({"json_schema": SCHEMA}, "json_schema", None),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"regex": "a+"}, "regex", "a+"),
        ({"guided_choice": ["a", "b"]}, "choice", '["a", "b"]'),
        ({"structured_outputs": {"json": SCHEMA, "regex": None}}, "json_schema", None),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", '["a", "b"]'),
        ({"structured_outputs": {"json_object": True, "disable_fallback": True}}, "json_object", None),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "json_schema", None),
    ],
    ids=str,
)
def test_forms_of_other_servers_are_ours(native: Any, fields: Any, kind: str, source: str | None) -> None:
    form = native(**fields).response_format
    assert form.type == kind
    if form.json_schema is not None and source is None:
        assert list(form.json_schema.schema_["properties"]) == ["b", "a"]
    elif source is not None:
        assert form.source == source


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n_predict": 7, "max_tokens": 8}, "n_predict"),
        ({"guided_regex": "a", "response_format": {"type": "regex", "regex": "b"}}, "guided_regex"),
        ({"guided_grammar": "root ::= a"}, "guided_grammar"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "root ::= a"}}, "structured_outputs"),
        ({"structured_outputs": "x"}, "structured_outputs"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
        ({"detokenize": 1}, "detokenize"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"top_k": -2}, "top_k"),
        ({"think": "much"}, "think"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"bos_token": "x"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {str(i): 1 for i in range(65)}}, "chat_template_kwargs"),
        ({"think": True, "chat_template_kwargs": {"enable_thinking": False}}, "think"),
        ({"continue_final_message": True}, "continue_final_message"),
    ],
    ids=str,
)
def test_words_that_say_two_things_or_nothing_known_are_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        chat(**fields)
    assert raised.value.param == param


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        ({"think": True}, {"enable_thinking": True}),
        ({"think": "low"}, {"reasoning_effort": "low"}),
        ({"enable_thinking": False, "chat_template_kwargs": {"x": 1}}, {"enable_thinking": False, "x": 1}),
        ({"reasoning_effort": "none"}, {"enable_thinking": False}),
        ({"reasoning_effort": "high", "chat_template_kwargs": {"x": 1}}, {"reasoning_effort": "high", "x": 1}),
        ({"documents": [{"title": "a"}]}, {"documents": [{"title": "a"}]}),
    ],
    ids=str,
)
def test_values_for_the_template_come_together(fields: dict[str, Any], values: dict[str, Any]) -> None:
    assert chat(**fields).chat_template_kwargs == values


@pytest.mark.parametrize("word", ["thinking_budget", "thinking_token_budget"])
def test_a_budget_for_thinking_is_a_limit_of_its_tokens(word: str) -> None:
    assert chat(**{word: 32}).max_reasoning_tokens == 32


def test_without_a_cached_prompt_no_two_requests_share_a_space() -> None:
    salts = {chat(cache_prompt=False).cache_salt for _ in range(2)}
    assert len(salts) == 2
    assert None not in salts


def test_a_message_to_continue_is_the_assistants_last_text() -> None:
    turns = [*HI, {"role": "assistant", "content": "one"}]
    assert chat(messages=turns, continue_final_message=True, add_generation_prompt=False).continue_final_message
    call = {"id": "c", "function": {"name": "f", "arguments": "{}"}}
    for last in (HI[0], {**turns[1], "content": ""}, {**turns[1], "tool_calls": [call]}):
        with pytest.raises(InvalidRequest, match="the last message must be an assistant's"):
            chat(messages=[*HI, last], continue_final_message=True)
    with pytest.raises(InvalidRequest, match="does not go with add_generation_prompt"):
        chat(messages=turns, continue_final_message=True, add_generation_prompt=True)


def test_who_asks_may_have_two_names() -> None:
    for fields, asker in (
        ({"user": "a"}, "a"),
        ({"safety_identifier": "b"}, "b"),
        ({"user": "a", "safety_identifier": "b"}, "b"),
    ):
        assert ChatCompletionRequest.parse({"messages": HI, **fields}).asker == asker


def test_metadata_comes_back_in_whole_answers_only() -> None:
    request = ChatCompletionRequest.parse({"messages": HI, "metadata": {"a": "b"}})
    assert request.ignored == ()
    assert ChatCompletionRequest.parse({"messages": HI, "metadata": {"a": "b"}, "stream": True}).ignored == (
        "metadata",
    )


def test_a_list_of_5000_choices_is_taken() -> None:
    for count, fine in ((5000, True), (5001, False)):
        form = {"type": "choice", "choice": [str(i) for i in range(count)]}
        if fine:
            assert len(chat(response_format=form).response_format.choice or ()) == count
        else:
            with pytest.raises(InvalidRequest, match="5000"):
                chat(response_format=form)
