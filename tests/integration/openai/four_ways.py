"""One request sent in four ways, sync and async, streamed and not. All must give the same answer."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest


@dataclass
class Choice:
    """One answer, to any kind of call."""

    text: str | None = None
    finish_reason: str | None = None
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Name and arguments of each call."""
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top: list[Any] = field(default_factory=list)
    """Likeliest tokens for each token, as pairs of text and log-probability, or None."""
    offsets: list[int] = field(default_factory=list)


@dataclass
class Joined:
    """A whole answer, or the joined events of a stream."""

    choices: list[Choice]
    usage: tuple[int, int, int]

    @property
    def only(self) -> Choice:
        (choice,) = self.choices
        return choice


class FourWays:
    """Calls `ask.chat(...)`, `ask.completions(...)`, `ask.responses(...)`: each returns the answer of all four ways."""

    def __init__(self, base_url: str, model: str):
        self._options: dict[str, Any] = {
            "base_url": base_url,
            "api_key": "none",
            "max_retries": 0,
            "timeout": 120,
        }
        self._model = model

    def chat(self, messages: Any = "What is the capital of France?", **parameters: Any) -> Joined:
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self._same("chat.completions", {"messages": messages, **parameters}, whole_chat, streamed_chat)

    def completions(self, prompt: Any, **parameters: Any) -> Joined:
        return self._same("completions", {"prompt": prompt, **parameters}, whole_texts, streamed_texts)

    def responses(self, input: Any, **parameters: Any) -> Joined:
        return self._same("responses", {"input": input, **parameters}, whole_response, streamed_response)

    def _same(self, call: str, parameters: dict[str, Any], whole: Any, streamed: Any) -> Joined:
        parameters = {"model": self._model, "temperature": 0, **parameters}
        streaming = {**parameters, "stream": True}
        if call != "responses":
            streaming["stream_options"] = {"include_usage": True}
        with openai.OpenAI(**self._options) as client:
            create = _find(client, call)
            first = whole(create(**parameters))
            assert_same(streamed(list(create(**streaming))), first)
        for answer in asyncio.run(self._async(call, parameters, streaming, whole, streamed)):
            assert_same(answer, first)
        return first

    async def _async(
        self, call: str, parameters: dict[str, Any], streaming: dict[str, Any], whole: Any, streamed: Any
    ) -> list[Joined]:
        async with openai.AsyncOpenAI(**self._options) as client:
            create = _find(client, call)
            answer = whole(await create(**parameters))
            return [answer, streamed([event async for event in await create(**streaming)])]


def _find(client: Any, call: str) -> Any:
    for name in call.split("."):
        client = getattr(client, name)
    return client.create


def assert_same(a: Joined, b: Joined) -> None:
    """Check that two answers are equal, except for the last digits of the log-probabilities."""
    assert a.usage == b.usage
    assert len(a.choices) == len(b.choices)
    for one, other in zip(a.choices, b.choices, strict=True):
        for name in ("text", "finish_reason", "calls", "tokens", "offsets"):
            assert getattr(one, name) == getattr(other, name), name
        assert one.token_logprobs == pytest.approx(other.token_logprobs, abs=1e-3)
        assert [_texts(top) for top in one.top] == [_texts(top) for top in other.top]
        assert _values(one.top) == pytest.approx(_values(other.top), abs=1e-3)


def _texts(top: Any) -> Any:
    return None if top is None else [text for text, _ in top]


def _values(tops: list[Any]) -> list[float]:
    return [value for top in tops for _, value in top or ()]


def whole_chat(answer: Any) -> Joined:
    assert (answer.object, answer.id.split("-")[0]) == ("chat.completion", "chatcmpl")
    assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
    choices = []
    for choice in answer.choices:
        assert choice.message.role == "assistant"
        made = Choice(choice.message.content, choice.finish_reason)
        for call in choice.message.tool_calls or ():
            assert call.id
            assert call.type == "function"
            made.calls.append((call.function.name, call.function.arguments))
        _add_chat_logprobs(made, choice.logprobs)
        choices.append(made)
    return Joined(choices, _usage(answer.usage))


def streamed_chat(events: list[Any]) -> Joined:
    """Join the events: for each choice the role first and the finish reason last, then the usage after all choices."""
    assert {event.object for event in events} == {"chat.completion.chunk"}
    *chunks, last = _with_usage_last(events)
    choices: dict[int, Choice] = defaultdict(Choice)
    for chunk in chunks:
        (choice,) = chunk.choices
        begins = choice.index not in choices
        made = choices[choice.index]
        assert made.finish_reason is None, "something came after the end"
        assert (choice.delta.role == "assistant") == begins
        if choice.delta.content is not None:
            made.text = (made.text or "") + choice.delta.content
        for delta in choice.delta.tool_calls or ():
            if delta.id is not None:
                assert delta.index == len(made.calls)
                assert delta.type == "function"
                made.calls.append((delta.function.name, ""))
            name, arguments = made.calls[delta.index]
            made.calls[delta.index] = name, arguments + (delta.function.arguments or "")
        _add_chat_logprobs(made, choice.logprobs)
        made.finish_reason = choice.finish_reason
    for made in choices.values():
        if made.calls:
            made.text = made.text or None
    return Joined([choices[i] for i in range(len(choices))], _usage(last.usage))


def _add_chat_logprobs(made: Choice, logprobs: Any) -> None:
    for token in logprobs.content if logprobs is not None else ():
        made.tokens.append(token.token)
        made.token_logprobs.append(token.logprob)
        made.top.append([(other.token, other.logprob) for other in token.top_logprobs])


def whole_texts(answer: Any) -> Joined:
    assert (answer.object, answer.id.split("-")[0]) == ("text_completion", "cmpl")
    assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
    choices = []
    for choice in answer.choices:
        made = Choice(choice.text, choice.finish_reason)
        _add_text_logprobs(made, choice.logprobs)
        choices.append(made)
    return Joined(choices, _usage(answer.usage))


def streamed_texts(events: list[Any]) -> Joined:
    assert {event.object for event in events} == {"text_completion"}
    *chunks, last = _with_usage_last(events)
    choices: dict[int, Choice] = defaultdict(lambda: Choice(""))
    for chunk in chunks:
        (choice,) = chunk.choices
        made = choices[choice.index]
        assert made.finish_reason is None, "something came after the end"
        made.text += choice.text
        _add_text_logprobs(made, choice.logprobs)
        made.finish_reason = choice.finish_reason
    return Joined([choices[i] for i in range(len(choices))], _usage(last.usage))


def _add_text_logprobs(made: Choice, logprobs: Any) -> None:
    if logprobs is not None:
        made.tokens += logprobs.tokens
        made.token_logprobs += logprobs.token_logprobs
        made.top += [None if top is None else list(top.items()) for top in logprobs.top_logprobs]
        made.offsets += logprobs.text_offset


def _with_usage_last(events: list[Any]) -> list[Any]:
    assert len({(event.id, event.model, event.created) for event in events}) == 1, "an answer has one id"
    assert [event.usage is None for event in events] == [True] * (len(events) - 1) + [False]
    assert events[-1].choices == []
    return events


def _usage(usage: Any) -> tuple[int, int, int]:
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


def whole_response(answer: Any) -> Joined:
    """Return one choice with the text of all messages, the calls, and the finish reason."""
    assert (answer.object, answer.id.split("_")[0], answer.error) == ("response", "resp", None)
    made = Choice()
    for item in answer.output:
        assert item.status == (answer.status if item is answer.output[-1] else "completed")
        if item.type == "message":
            made.text = answer.output_text
            (part,) = item.content
            for token in part.logprobs or ():
                made.tokens.append(token.token)
                made.token_logprobs.append(token.logprob)
                made.top.append([(other.token, other.logprob) for other in token.top_logprobs])
        else:
            assert item.id.split("_")[0] == "fc"
            made.calls.append((item.name, item.arguments))
    cut = answer.incomplete_details.reason if answer.incomplete_details else None
    made.finish_reason = {"completed": "stop", "incomplete": cut}[answer.status]
    usage = answer.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    return Joined([made], (usage.input_tokens, usage.output_tokens, usage.total_tokens))


def streamed_response(events: list[Any]) -> Joined:
    """Return the answer in the last event. The events before must have given the same answer in parts."""
    assert [event.sequence_number for event in events] == list(range(len(events)))
    whole = events[-1].response
    assert events[-1].type == f"response.{whole.status}"
    assert [event.type for event in events] == list(_types(whole, events))
    for event in events[:2]:
        assert (event.response.status, event.response.output, event.response.usage) == ("in_progress", [], None)
        assert event.response.id == whole.id
    for index, item in enumerate(whole.output):
        mine = [event for event in events[2:-1] if event.output_index == index]
        ids = {getattr(event, "item_id", None) or event.item.id for event in mine}
        assert ids == {item.id}
        told = "".join(event.delta for event in mine if event.type.endswith(".delta"))
        assert told == (item.arguments if item.type == "function_call" else item.content[0].text)
        assert mine[-1].item == item
    return whole_response(whole)


def _types(whole: Any, events: list[Any]) -> Iterable[str]:
    """Yield the types of the events in this response's stream, in order."""
    yield from ("response.created", "response.in_progress")
    for index, item in enumerate(whole.output):
        deltas = sum(getattr(e, "output_index", None) == index and e.type.endswith(".delta") for e in events)
        yield "response.output_item.added"
        if item.type == "message":
            yield "response.content_part.added"
            yield from ["response.output_text.delta"] * deltas
            yield from ("response.output_text.done", "response.content_part.done")
        else:
            yield from ["response.function_call_arguments.delta"] * deltas
            yield "response.function_call_arguments.done"
        yield "response.output_item.done"
    yield f"response.{whole.status}"
