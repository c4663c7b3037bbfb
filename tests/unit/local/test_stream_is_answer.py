"""Without these tests a streamed answer could differ from the whole one. Both must be equal for any pieces."""

import copy
import json
import random
import re
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
from families import copied_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from reasoning_models import BODIES, PROMPT_ENDS, reasoning_tokenizer
from tool_models import NAMES, ROWS, tool_tokenizer

from run_gpt.api.native_stream import NativeStream
from run_gpt.api.openai.chat import ChatCompletionRequest
from run_gpt.api.openai.completions import CompletionRequest
from run_gpt.api.openai.responses import ResponseRequest
from run_gpt.api.pieces import Head, Pending, Piece
from run_gpt.api.sse import body_event
from run_gpt.engine import request as engine_request
from run_gpt.engine.request import TokenEvent, TokenLogprob
from run_gpt.gateway.stream_writer import StreamWriter
from run_gpt.local.answers import PieceOutlet, PieceWriter
from run_gpt.local.prompts import Prompts
from run_gpt.models.templates import PLAIN

TOKENIZER = copied_tokenizer()
FUNCTIONS = [{"name": name, "parameters": {"type": "object"}} for name in ("get", "clock")]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]
FLAT = [{"type": "function", **function} for function in FUNCTIONS]
MESSAGES = [{"role": "user", "content": "x"}]
STREAM = {"stream": True, "stream_options": {"include_usage": True}}

words = st.text("ab é日😀\n<[{\"'}]>,:", max_size=10)
made = st.lists(st.tuples(st.sampled_from(["get", "clock", "nobody"]), st.sampled_from(["{}", '{"é": [1, "}"]}'])))
bits = words | st.sampled_from(["<tool_call>", "[TOOL_CALLS]", '{"name": "get", "arguments": {', "[ARGS]", "get"])
seeds = st.integers(0, 2**32)


@st.composite
def texts(draw: Any, row: Any) -> str:
    """Draw texts of words, tool calls and parts of tool calls."""
    parts = [draw(words)]
    for call in draw(made)[:2]:
        parts += [row.form.write([call]), draw(bits)]
    return "".join(parts)


def prompts_of(tokenizer: Any) -> Prompts:
    loaded = SimpleNamespace(tokenizer=tokenizer, chat_template=PLAIN, sampling={}, vocabulary=len(tokenizer))
    return Prompts(loaded)  # type: ignore[arg-type]


PROMPTS = {name: prompts_of(tool_tokenizer(name)) for name in NAMES}
PLAIN_PROMPTS = prompts_of(TOKENIZER)
THINKING = {name: prompts_of(reasoning_tokenizer(name)) for name in BODIES}


def events_of(sequences: list[str], seed: int) -> list[TokenEvent]:
    """Return events of all sequences in mixed order. Each text is cut anywhere, and its tokens come in any event."""
    choose = random.Random(seed)
    queues = []
    for index, text in enumerate(sequences):
        ids = TOKENIZER(text)["input_ids"]
        pieces = choose.randrange(1, 8)
        cuts = [sorted(choose.randrange(len(of) + 1) for _ in range(pieces - 1)) for of in (text, ids)]
        spans = [list(zip([0, *cut], [*cut, len(of)], strict=True)) for cut, of in zip(cuts, (text, ids), strict=True)]
        events = []
        for (a, b), (c, d) in zip(*spans, strict=True):
            logprobs = tuple(TokenLogprob(i, -0.25 * i, ((i, -0.25 * i), (5, -9.0))) for i in ids[c:d])
            events.append(TokenEvent(index, text[a:b], d - c, logprobs=logprobs))
        events[-1] = replace(events[-1], finish_reason=choose.choice(["stop", "length"]))
        queues.append(events)
    mixed = []
    while queues:
        queue = choose.choice(queues)
        mixed.append(queue.pop(0))
        queues = [q for q in queues if q]
    return mixed


def both(
    request: Any, prompts: Prompts, sequences: list[str], seed: int, prompt_ids: tuple[int, ...] = (65, 66)
) -> tuple[Any, list[Any]]:
    """Return the JSON of the whole answer to a request, and of the events of its stream."""
    (native,) = request.natives()
    prepared = engine_request.Request(id="cmpl-1", prompt_ids=prompt_ids, max_new_tokens=99)
    events = events_of(sequences, seed)
    wholes = [TokenEvent(index, "", 0) for index in range(len(sequences))]
    for event in events:
        wholes[event.index] += event
    at_once = PieceWriter("m", prompts, native, prepared)
    whole = NativeStream(native, at_once.head).whole([at_once.piece(event) for event in wholes])
    bodies = stream_of(request, native, pieces_of(PieceWriter("m", prompts, native, prepared), events), seed)
    return json.loads(request.join([whole]).to_json()), bodies


def pieces_of(writer: PieceWriter, events: list[TokenEvent]) -> list[Head | Piece]:
    """Return the pieces that an executor sends."""
    sent: list[Any] = []
    outlet = PieceOutlet(writer, SimpleNamespace(put=sent.append), lambda timing: None)  # type: ignore[arg-type]
    for event in events:
        outlet.receive(event)
    return sent


def stream_of(request: Any, native: Any, news: list[Any], seed: int) -> list[Any]:
    """Return the JSON of a stream's events. Both ways to write them must give the same bytes, for any merged pieces."""
    choose, pending = random.Random(seed), Pending()
    long, short = StreamWriter(request, [native]), StreamWriter(request, [native])
    bodies: list[Any] = []
    for one in [*news, None]:
        if one is not None:
            pending.put(copy.deepcopy(one))
            if choose.random() < 0.4:
                continue
        for taken in pending.take():
            if isinstance(taken, Head):
                long.begin(0, taken)
                short.begin(0, taken)
                continue
            made = long.bodies(0, copy.deepcopy(taken))
            assert alike(b"".join(map(body_event, made))) == alike(short.sse(0, taken))
            bodies += made
    bodies += long.end()
    assert [body.to_json() for body in long.end()] == [body.to_json() for body in short.end()]
    return [json.loads(body.to_json()) for body in bodies]


def alike(events: bytes) -> bytes:
    """Return events without the random ids."""
    return re.sub(rb'"(resp|msg|fc|rs)_[0-9a-f]{48}"', rb'"\1"', events)


def joined_chat(bodies: list[Any]) -> list[Any]:
    choices: Any = defaultdict(lambda: {"content": "", "thought": "", "calls": [], "tokens": [], "reason": None})
    for body in bodies:
        for choice in body["choices"]:
            to, delta = choices[choice["index"]], choice["delta"]
            to["content"] += delta.get("content") or ""
            parts = [call["index"] for call in delta.get("tool_calls", ())]
            assert len(parts) == len(set(parts)), "clients expect one part of each call in an event"
            to["thought"] += delta.get("reasoning_content") or ""
            assert delta.get("reasoning") == delta.get("reasoning_content")
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    to["calls"].append([call["function"]["name"], ""])
                to["calls"][call["index"]][1] += call["function"].get("arguments", "")
            to["tokens"] += choice["logprobs"]["content"] if choice["logprobs"] else []
            to["reason"] = to["reason"] or choice["finish_reason"]
    return [choices[i] for i in range(len(choices))]


def whole_chat(body: Any) -> list[Any]:
    return [
        {
            "content": choice["message"]["content"] or "",
            "thought": choice["message"].get("reasoning_content") or "",
            "calls": [
                [c["function"]["name"], c["function"]["arguments"]] for c in choice["message"].get("tool_calls", ())
            ],
            "tokens": choice["logprobs"]["content"] if choice["logprobs"] else [],
            "reason": choice["finish_reason"],
        }
        for choice in body["choices"]
    ]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), name=st.sampled_from(NAMES), seed=seeds, logprobs=st.booleans(), parallel=st.booleans())
def test_a_chat(data: Any, name: str, seed: int, logprobs: bool, parallel: bool) -> None:
    sequences = [data.draw(texts(ROWS[name])) for _ in range(2)]
    fields = {"messages": MESSAGES, "tools": TOOLS, "n": 2, "logprobs": logprobs, "parallel_tool_calls": parallel}
    request = ChatCompletionRequest.parse({**fields, **STREAM})
    whole, bodies = both(request, PROMPTS[name], sequences, seed)
    assert joined_chat(bodies) == whole_chat(whole)
    assert bodies[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        assert (choice["message"]["content"] is None) <= ("tool_calls" in choice["message"])


@settings(max_examples=200, deadline=None)
@given(data=st.data(), name=st.sampled_from(NAMES), seed=seeds, logprobs=st.booleans())
def test_a_response(data: Any, name: str, seed: int, logprobs: bool) -> None:
    """Check a response. In a stream, text after a call is a separate message, because the first one is closed."""
    text = data.draw(texts(ROWS[name]))
    fields = {"input": "x", "tools": FLAT, "stream": True, **({"top_logprobs": 1} if logprobs else {})}
    whole, bodies = both(ResponseRequest.parse(fields), PROMPTS[name], [text], seed)
    streamed = bodies[-1]["response"]
    for field in ("status", "usage", "incomplete_details", "tools", "text", "model"):
        assert streamed[field] == whole[field]
    assert told(streamed["output"]) == told(whole["output"])
    assert [body["type"] for body in bodies].count("response.output_item.added") == len(streamed["output"])
    for kind, field in (("output_text", "text"), ("function_call_arguments", "arguments")):
        deltas = "".join(body["delta"] for body in bodies if body["type"] == f"response.{kind}.delta")
        assert deltas == "".join(body[field] for body in bodies if body["type"] == f"response.{kind}.done")
    if not told(whole["output"])[1]:
        assert tokens(streamed["output"]) == tokens(whole["output"])


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(THINKING)), data=st.data(), seed=seeds, logprobs=st.booleans(), tools=st.booleans())
def test_a_chat_with_thinking(name: str, data: Any, seed: int, logprobs: bool, tools: bool) -> None:
    bodies_of_name = data.draw(st.lists(st.sampled_from(BODIES[name]), min_size=2, max_size=2))
    fields = {"messages": MESSAGES, "n": 2, "logprobs": logprobs, **({"tools": TOOLS} if tools else {})}
    prompt_ids = tuple(reasoning_tokenizer(name)(PROMPT_ENDS.get(name, "x"))["input_ids"])
    request = ChatCompletionRequest.parse({**fields, **STREAM})
    whole, bodies = both(request, THINKING[name], [answer for answer, *_ in bodies_of_name], seed, prompt_ids)
    assert joined_chat(bodies) == whole_chat(whole)
    assert bodies[-1]["usage"] == whole["usage"]
    assert "reasoning_tokens" in whole["usage"]["completion_tokens_details"]
    assert [one["thought"] for one in whole_chat(whole)] == [thought for _, thought, _ in bodies_of_name]
    if not tools:
        assert [one["content"] for one in whole_chat(whole)] == [text for *_, text in bodies_of_name]


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(THINKING)), data=st.data(), seed=seeds, logprobs=st.booleans())
def test_a_response_with_thinking(name: str, data: Any, seed: int, logprobs: bool) -> None:
    answer, thought, text = data.draw(st.sampled_from(BODIES[name]))
    fields = {"input": "x", "stream": True, **({"top_logprobs": 1} if logprobs else {})}
    prompt_ids = tuple(reasoning_tokenizer(name)(PROMPT_ENDS.get(name, "x"))["input_ids"])
    whole, bodies = both(ResponseRequest.parse(fields), THINKING[name], [answer], seed, prompt_ids)
    streamed = bodies[-1]["response"]
    assert thoughts(whole["output"]) == thought
    assert told(whole["output"]) == (text, [])
    assert thoughts(streamed["output"]) == thought
    assert told(streamed["output"]) == (text, [])
    for field in ("status", "usage"):
        assert streamed[field] == whole[field]
    deltas = [body["delta"] for body in bodies if body["type"] == "response.reasoning_text.delta"]
    assert "".join(deltas) == thought
    for body in bodies:
        if "item_id" in body:
            item = streamed["output"][body["output_index"]]
            assert body["item_id"] == item["id"]
            assert (body["type"].split(".")[1] == "reasoning_text") <= (item["type"] == "reasoning")


def thoughts(output: list[Any]) -> str:
    return "".join(item["content"][0]["text"] for item in output if item["type"] == "reasoning")


def told(output: list[Any]) -> tuple[str, list[Any]]:
    text = "".join(item["content"][0]["text"] for item in output if item["type"] == "message")
    return text, [(item["name"], item["arguments"]) for item in output if item["type"] == "function_call"]


def tokens(output: list[Any]) -> list[Any]:
    return [token for item in output for token in item["content"][0]["logprobs"]]


@settings(max_examples=200, deadline=None)
@given(sequences=st.lists(words, min_size=2, max_size=2), seed=seeds, echo=st.booleans(), logprobs=st.booleans())
def test_a_completion(sequences: list[str], seed: int, echo: bool, logprobs: bool) -> None:
    fields = {"prompt": "ab", "n": 2, "echo": echo, "logprobs": 1 if logprobs else None, **STREAM}
    whole, bodies = both(CompletionRequest.parse(fields), PLAIN_PROMPTS, sequences, seed)
    choices: Any = {}
    for body in bodies:
        for choice in body["choices"]:
            to = choices.setdefault(choice["index"], {**choice, "text": "", "logprobs": None})
            to["text"] += choice["text"]
            to["finish_reason"] = to["finish_reason"] or choice["finish_reason"]
            if choice["logprobs"]:
                to["logprobs"] = {k: (to["logprobs"] or {}).get(k, []) + v for k, v in choice["logprobs"].items()}
    assert [choices[i] for i in range(2)] == whole["choices"]
    assert bodies[-1]["usage"] == whole["usage"]
    assert [choice["text"] for choice in whole["choices"]] == [("ab" if echo else "") + text for text in sequences]


@pytest.mark.parametrize("name", NAMES)
def test_calls_are_given_as_calls(name: str) -> None:
    """Check each format with a plain call."""
    text = ROWS[name].form.write([("get", '{"a": 1}')])
    whole, _ = both(ChatCompletionRequest.parse({"messages": MESSAGES, "tools": TOOLS}), PROMPTS[name], [text], 1)
    (choice,) = whole["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert (call["function"], choice["message"]["content"]) == ({"name": "get", "arguments": '{"a": 1}'}, None)
    assert call["id"].startswith("call_")
