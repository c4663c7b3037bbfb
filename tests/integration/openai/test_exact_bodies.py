"""Exact bodies, read by `requests` and `sseclient`. Programs without OpenAI's client parse these bytes themselves."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests
import sseclient

CAPITAL = "What is the capital of France?"
CHAT = {"model": "smollm2", "messages": [{"role": "user", "content": CAPITAL}], "temperature": 0, "max_tokens": 3}
TEXT = {"model": "smollm2", "prompt": "The capital of France is", "temperature": 0, "max_tokens": 3}
RESPONSE = {"model": "smollm2", "input": CAPITAL, "temperature": 0, "max_output_tokens": 3}
USAGE = {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"}
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


@contextmanager
def streaming(session: requests.Session, url: str, body: dict[str, Any]) -> Iterator[Any]:
    with session.post(url, json={"stream": True, **body}, stream=True, timeout=120) as answer:
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].split(";")[0] == "text/event-stream"
        yield answer


def events_of(session: requests.Session, url: str, body: dict[str, Any]) -> list[Any]:
    with streaming(session, url, body) as answer:
        return list(sseclient.SSEClient(answer).events())


def in_flight(session: requests.Session, base_url: str) -> int:
    return int(session.get(f"{base_url.removesuffix('/v1')}/ready", timeout=10).json()["in_flight"])


def wait_idle(session: requests.Session, base_url: str) -> None:
    deadline = time.monotonic() + 20
    while in_flight(session, base_url):
        assert time.monotonic() < deadline, "the request still runs"
        time.sleep(0.02)  # between two polls of the condition


def test_a_chats_body(session: requests.Session, base_url: str) -> None:
    answer = session.post(f"{base_url}/chat/completions", json=CHAT, timeout=60)
    assert answer.headers["Content-Type"] == "application/json"
    body = answer.json()
    assert re.fullmatch("chatcmpl-[0-9a-f]{32}", body.pop("id"))
    assert abs(body.pop("created") - time.time()) < 60
    assert body.pop("usage").keys() == USAGE
    assert body == {
        "object": "chat.completion",
        "model": "smollm2",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "The capital of", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
    }


def test_a_completions_body(session: requests.Session, base_url: str) -> None:
    body = session.post(f"{base_url}/completions", json={**TEXT, "max_tokens": 1}, timeout=60).json()
    assert re.fullmatch("cmpl-[0-9a-f]{32}", body.pop("id"))
    assert body.pop("created") > 0
    assert body.pop("usage").keys() == USAGE
    choice = {"text": " Paris", "index": 0, "logprobs": None, "finish_reason": "length"}
    assert body == {"object": "text_completion", "model": "smollm2", "choices": [choice]}


def test_logprobs_in_both_shapes(session: requests.Session, base_url: str) -> None:
    asked = {**CHAT, "max_tokens": 1, "logprobs": True, "top_logprobs": 1}
    chat = session.post(f"{base_url}/chat/completions", json=asked, timeout=60).json()["choices"][0]["logprobs"]
    assert chat.keys() == {"content", "refusal"}
    (token,) = chat["content"]
    assert token.keys() == {"token", "logprob", "bytes", "top_logprobs"}
    assert (token["token"], token["bytes"]) == ("The", list(b"The"))
    assert [top.keys() for top in token["top_logprobs"]] == [{"token", "logprob", "bytes"}]
    asked = {**TEXT, "max_tokens": 1, "logprobs": 1, "echo": True}
    text = session.post(f"{base_url}/completions", json=asked, timeout=60).json()["choices"][0]["logprobs"]
    assert text.keys() == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert text["tokens"] == ["The", " capital", " of", " France", " is", " Paris"]
    assert text["text_offset"] == [0, 3, 11, 14, 21, 24]
    assert (text["token_logprobs"][0], text["top_logprobs"][0]) == (None, None)
    assert text["top_logprobs"][-1] == {" Paris": text["token_logprobs"][-1]}


def test_a_responses_body(session: requests.Session, base_url: str) -> None:
    body = session.post(f"{base_url}/responses", json=RESPONSE, timeout=60).json()
    assert re.fullmatch("resp_[0-9a-f]{48}", body.pop("id"))
    assert body.pop("created_at") > 0
    (item,) = body.pop("output")
    assert re.fullmatch("msg_[0-9a-f]{48}", item.pop("id"))
    assert item == {
        "type": "message",
        "status": "incomplete",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "The capital of", "annotations": [], "logprobs": []}],
    }
    usage = body.pop("usage")
    assert usage.pop("input_tokens_details").keys() == {"cached_tokens", "cache_write_tokens"}
    assert usage == {
        "input_tokens": 37,
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 40,
    }
    assert body == {
        "object": "response",
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "model": "smollm2",
        "instructions": None,
        "max_output_tokens": 3,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": 0.0,
        "top_p": None,  # not asked for: the model's default, which the gateway does not know
        "tool_choice": "none",
        "tools": [],
        "text": {"format": {"type": "text"}},
        "top_logprobs": 0,
        "user": None,
        "error": None,
        "previous_response_id": None,
        "reasoning": None,
        "background": False,
        "store": False,
        "truncation": "disabled",
    }


def test_bodies_of_models_embeddings_and_tokens(session: requests.Session, base_url: str) -> None:
    models = session.get(f"{base_url}/models", timeout=60).json()
    assert models["object"] == "list"
    (card,) = models["data"]
    assert card == session.get(f"{base_url}/models/smollm2", timeout=60).json()
    own = {"root", "parent", "max_model_len", "precision", "sampling_defaults", "state", "memory"}
    assert card.keys() == {"id", "object", "created", "owned_by", *own}
    assert card["precision"] == "fp32"  # as the fixture asks
    assert card["sampling_defaults"] == {"do_sample": False}  # the catalogue's
    embeddings = session.post(f"{base_url}/embeddings", json={"model": "smollm2", "input": "Hi"}, timeout=60).json()
    assert embeddings.keys() == {"object", "data", "model", "usage", "id", "created"}
    assert embeddings["usage"] == {"prompt_tokens": 1, "total_tokens": 1}
    (item,) = embeddings["data"]
    assert (item["object"], item["index"], len(item["embedding"])) == ("embedding", 0, 576)
    root = base_url.removesuffix("/v1")
    tokens = session.post(f"{root}/tokenize", json={"prompt": "Hello world"}, timeout=60).json()
    assert tokens.keys() == {"id", "created", "model", "tokens", "count", "max_model_len"}
    text = session.post(f"{root}/detokenize", json={"tokens": [19556, 905]}, timeout=60).json()
    assert (text.keys(), text["prompt"]) == ({"id", "created", "model", "prompt"}, "Hello world")


def test_a_chats_stream_to_the_byte(session: requests.Session, base_url: str) -> None:
    with streaming(session, f"{base_url}/chat/completions", CHAT) as answer:
        text = answer.content.decode()
    *blocks, end = text.split("\n\n")
    assert (blocks.pop(), end) == ("data: [DONE]", "")
    bodies = [json.loads(block.removeprefix("data: ")) for block in blocks]
    for body in bodies:
        assert body.keys() == {"id", "object", "created", "model", "choices"}
        assert body["object"] == "chat.completion.chunk"
    assert len({body["id"] for body in bodies}) == 1
    common = {"index": 0, "logprobs": None}
    assert [body["choices"] for body in bodies] == [
        [{**common, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}],
        [{**common, "delta": {"content": "The"}, "finish_reason": None}],
        [{**common, "delta": {"content": " capital"}, "finish_reason": None}],
        [{**common, "delta": {"content": " of"}, "finish_reason": None}],
        [{**common, "delta": {}, "finish_reason": "length"}],
    ]


@pytest.mark.parametrize(("path", "body"), [("chat/completions", CHAT), ("completions", TEXT)])
def test_usage_comes_once_after_all_choices(
    session: requests.Session, base_url: str, path: str, body: dict[str, Any]
) -> None:
    *events, done = events_of(session, f"{base_url}/{path}", {**body, "n": 2, **WITH_USAGE})
    assert done.data == "[DONE]"
    *bodies, last = [json.loads(event.data) for event in events]
    assert all(body["usage"] is None and len(body["choices"]) == 1 for body in bodies)
    assert last["choices"] == []
    assert last["usage"].keys() == USAGE
    assert last["usage"]["completion_tokens"] == 6


def test_a_completions_stream(session: requests.Session, base_url: str) -> None:
    *events, done = events_of(session, f"{base_url}/completions", TEXT)
    assert done.data == "[DONE]"
    bodies = [json.loads(event.data) for event in events]
    for body in bodies:
        assert body.keys() == {"id", "object", "created", "model", "choices"}
        assert body["object"] == "text_completion"
        assert [choice.keys() for choice in body["choices"]] == [{"text", "index", "logprobs", "finish_reason"}]
    whole = session.post(f"{base_url}/completions", json=TEXT, timeout=60).json()
    assert "".join(body["choices"][0]["text"] for body in bodies) == whole["choices"][0]["text"]
    assert [body["choices"][0]["finish_reason"] for body in bodies] == [None, None, "length"]


def test_a_responses_events_are_named_and_have_no_done(session: requests.Session, base_url: str) -> None:
    events = events_of(session, f"{base_url}/responses", RESPONSE)
    bodies = [json.loads(event.data) for event in events]
    assert [event.event for event in events] == [body["type"] for body in bodies]
    assert [event.event for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    place = {"output_index", "content_index", "item_id"}
    keys = {event.event: body.keys() - {"type", "sequence_number"} for event, body in zip(events, bodies, strict=True)}
    assert keys == {
        "response.created": {"response"},
        "response.in_progress": {"response"},
        "response.output_item.added": {"output_index", "item"},
        "response.content_part.added": {*place, "part"},
        "response.output_text.delta": {*place, "delta", "logprobs"},
        "response.output_text.done": {*place, "text", "logprobs"},
        "response.content_part.done": {*place, "part"},
        "response.output_item.done": {"output_index", "item"},
        "response.incomplete": {"response"},
    }


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses", "embeddings"])
@pytest.mark.parametrize("stream", [True, False])
def test_errors_are_openais(session: requests.Session, base_url: str, path: str, stream: bool) -> None:
    """A stream that cannot begin is an HTTP error, not an event."""
    body = {"chat/completions": CHAT, "completions": TEXT, "responses": RESPONSE, "embeddings": {"input": "x"}}[path]
    body = {**body, "stream": stream} if path != "embeddings" else body
    for wrong, status, param, code in (
        ({"colour": 1}, 400, "colour", "invalid_value"),
        ({"model": "org/another"}, 404, "model", "model_not_found"),
    ):
        answer = session.post(f"{base_url}/{path}", json={**body, **wrong}, timeout=60)
        assert answer.status_code == status
        assert answer.headers["Content-Type"] == "application/json"
        error = answer.json()["error"]
        assert error.pop("message").startswith(param)
        assert error == {"type": "invalid_request_error", "param": param, "code": code}
    answer = session.post(f"{base_url}/{path}", data=b'{"model": ', timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")


@pytest.mark.parametrize("name", ["gpt-5", "HuggingFaceTB/SmolLM2-135M-Instruct", "a/b/c", "smollm2/x"])
def test_a_model_that_is_not_served(session: requests.Session, base_url: str, name: str) -> None:
    answer = session.get(f"{base_url}/models/{name}", timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert repr(name) in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {**CHAT, "max_tokens": 4000, "n": 2, "logit_bias": {"2": -100}}),
        ("completions", {**TEXT, "max_tokens": 4000, "prompt": ["one", "two"], "logit_bias": {"2": -100, "0": -100}}),
        ("responses", {**RESPONSE, "max_output_tokens": 4000, "input": "Write a novel of a thousand pages."}),
    ],
)
def test_a_client_that_disconnects_frees_its_slot(
    session: requests.Session, base_url: str, path: str, body: dict[str, Any]
) -> None:
    """Otherwise a server would be busy for minutes with unread answers."""
    with streaming(session, f"{base_url}/{path}", body) as answer:
        events = sseclient.SSEClient(answer).events()
        assert [next(events).event for _ in range(3)]
        assert in_flight(session, base_url) > 0
    wait_idle(session, base_url)
