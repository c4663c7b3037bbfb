"""`client.chat.completions`. Without these tests, programs written for OpenAI's chats could get wrong or no answers."""

from typing import Any

import openai
import pytest

from run_gpt.api.openai.chat import ChatCompletionRequest

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
STORY = [{"role": "user", "content": "Tell me a story."}]
# Values that a program sends in each refused field.
SENT: dict[str, Any] = {
    "audio": {"format": "wav", "voice": "alloy"},
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "metadata": {"a": "b"},
    "modalities": ["text", "audio"],
    "prediction": {"type": "content", "content": "x"},
    "store": True,
    "web_search_options": {},
}


def test_greedy_names_paris_whichever_way_it_is_asked(ask: Any) -> None:
    answer = ask.chat(CAPITAL)
    assert (answer.only.text, answer.only.finish_reason) == (ANSWER, "stop")
    assert answer.usage == (37, 8, 45)
    assert answer.only.tokens == []


def test_roles_names_and_parts_of_messages(ask: Any) -> None:
    text = {"type": "text", "text": "What is the capital of France?"}
    turns = [
        {"role": "developer", "content": "Answer with one word."},
        {"role": "user", "content": "What is the capital of Italy?", "name": "user"},
        {"role": "assistant", "content": "Rome", "refusal": None, "annotations": [], "tool_calls": None},
        {"role": "user", "content": [text]},
    ]
    assert "Paris" in ask.chat(turns, max_completion_tokens=12).only.text


def test_logprobs_are_those_of_the_model(ask: Any, plain: Any, scores: Any) -> None:
    """Otherwise a program that uses the confidence would use noise."""
    choice = ask.chat(CAPITAL, logprobs=True, top_logprobs=3).only
    assert "".join(choice.tokens) == choice.text == ANSWER  # without the token that ends it
    prompt = plain.tokenizer.apply_chat_template(CAPITAL, add_generation_prompt=True, return_dict=False)
    answer = plain.tokenizer(ANSWER)["input_ids"]
    rows = scores(prompt + answer)[len(prompt) - 1 :]
    expected = [row[token].item() for row, token in zip(rows, answer, strict=True)]
    assert choice.token_logprobs == pytest.approx(expected, abs=1e-3)
    for row, top in zip(rows, choice.top, strict=True):
        values, ids = row.topk(3)
        assert [text for text, _ in top] == [plain.tokenizer.decode([i]) for i in ids]
        assert [value for _, value in top] == pytest.approx(values.tolist(), abs=1e-3)


def test_logprobs_without_alternatives(ask: Any) -> None:
    choice = ask.chat(CAPITAL, logprobs=True, max_completion_tokens=3).only
    assert len(choice.tokens) == 3
    assert choice.top == [[], [], []]


@pytest.mark.parametrize("name", ["max_completion_tokens", "max_tokens"])
def test_a_limit_cuts_with_the_finish_reason_length(ask: Any, name: str) -> None:
    answer = ask.chat(CAPITAL, **{name: 4})
    assert (answer.only.text, answer.only.finish_reason) == ("The capital of France", "length")
    assert answer.usage[1] == 4


def test_a_stop_text_ends_the_answer_and_is_not_in_it(ask: Any) -> None:
    for stop in (" Paris", ["Lyon", " Paris"]):
        choice = ask.chat(CAPITAL, stop=stop, logprobs=True).only
        assert (choice.text, choice.finish_reason) == ("The capital of France is", "stop")
        assert "".join(choice.tokens) == choice.text


def test_n_gives_that_many_and_a_seed_the_same_again(ask: Any) -> None:
    """FourWays fails unless all four ways give the same samples."""
    sampled = {"n": 2, "temperature": 1.5, "top_p": 0.9, "max_completion_tokens": 6}
    one = ask.chat(STORY, seed=7, **sampled)
    texts = [choice.text for choice in one.choices]
    assert len(set(texts)) == 2
    assert one.usage[1] <= 12
    other = ask.chat(STORY, seed=8, **sampled)
    assert texts != [choice.text for choice in other.choices]
    assert ask.chat(STORY, seed=7 + 2**31, **sampled).choices == one.choices
    assert ask.chat(STORY, seed=-5, max_completion_tokens=2).only.text


def test_top_p_of_nothing_is_greedy(ask: Any) -> None:
    assert ask.chat(CAPITAL, temperature=1, top_p=0).only.text == ANSWER


def test_logit_bias_bans_a_token_and_forces_one(ask: Any, plain: Any) -> None:
    (paris,) = plain.tokenizer(" Paris")["input_ids"]
    assert "Paris" not in ask.chat(CAPITAL, logit_bias={str(paris): -100}, max_completion_tokens=12).only.text
    assert ask.chat(CAPITAL, logit_bias={str(paris): 100}, max_completion_tokens=3).only.text == " Paris Paris Paris"


def test_penalties_are_taken_off_what_came_before(ask: Any, plain: Any, greedy: Any) -> None:
    turns = [{"role": "user", "content": "Count from one to ten."}]
    prompt = plain.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    answers = []
    for penalties in ({}, {"frequency_penalty": -2}, {"presence_penalty": -2}):
        answers.append(ask.chat(turns, max_completion_tokens=8, **penalties).only.text)
        assert answers[-1] == greedy(prompt, 8, **penalties), penalties
    assert len(set(answers)) > 1


def test_user_is_taken(ask: Any) -> None:
    assert ask.chat(CAPITAL, user="anna", max_completion_tokens=2).only.text == "The capital"


def test_the_clients_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="smollm2", messages=CAPITAL, temperature=0) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        assert "".join(deltas) == ANSWER
        final = stream.get_final_completion()
    assert (final.choices[0].message.content, final.choices[0].finish_reason) == (ANSWER, "stop")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", sorted(ChatCompletionRequest.FIELDS.refused))
def test_a_field_that_is_not_supported_is_named(client: openai.OpenAI, name: str, stream: bool) -> None:
    """If the field were ignored, users would believe that it has an effect."""
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(
            model="smollm2", messages=CAPITAL, stream=stream, extra_body={name: SENT.get(name, "x")}
        )
    assert (raised.value.param, raised.value.type) == (name, "invalid_request_error")
    assert name in raised.value.message


def test_what_is_refused_may_be_sent_as_null(client: openai.OpenAI) -> None:
    nothing = dict.fromkeys(ChatCompletionRequest.FIELDS.refused)
    client.chat.completions.create(model="smollm2", messages=CAPITAL, max_tokens=1, extra_body=nothing)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"no_such_field": 1}, "no_such_field"),
        ({"temperature": 3}, "temperature"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"logit_bias": {"49152": 1}}, "logit_bias"),
        ({"logit_bias": {"Paris": 1}}, "logit_bias"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_completion_tokens": 2, "max_tokens": 3}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"colour": 1}}, "stream_options.colour"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ],
    ids=str,
)
def test_a_value_that_is_not_possible_is_named(client: openai.OpenAI, body: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="smollm2", messages=CAPITAL, extra_body=body)
    assert raised.value.param == param


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="gpt-5", messages=CAPITAL)
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


def test_too_long_a_chat_says_so(client: openai.OpenAI) -> None:
    turns: Any = [{"role": "user", "content": "x " * 9000}]
    with pytest.raises(openai.BadRequestError, match="8192") as raised:
        client.chat.completions.create(model="smollm2", messages=turns)
    assert (raised.value.code, raised.value.param) == ("context_length_exceeded", "messages")


def test_a_message_is_continued_and_echoed(ask: Any) -> None:
    """Without the template's part in it, the model would begin a new answer, or end the old one."""
    turns = [*CAPITAL, {"role": "assistant", "content": "The capital of France is"}]
    body = {"continue_final_message": True, "add_generation_prompt": False}
    fields = {"temperature": 0, "max_completion_tokens": 1}
    assert ask.chat(turns, **fields, extra_body=body).only.text == " Paris"
    assert ask.chat(turns, **fields, extra_body={**body, "echo": True}).only.text == "The capital of France is Paris"


def test_words_of_other_servers_have_their_effect(client: openai.OpenAI) -> None:
    words = {"ignore_eos": True, "n_predict": 40, "top_k": -1, "min_tokens": 2, "cache_prompt": False}
    answer = client.chat.completions.create(model="smollm2", messages=CAPITAL, temperature=0, extra_body=words)
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (40, "length")
    turns: Any = [{**CAPITAL[0], "name": "anna"}]
    with pytest.raises(openai.BadRequestError, match="shows no name"):
        client.chat.completions.create(model="smollm2", messages=turns)
