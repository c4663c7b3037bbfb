"""Hints in requests, on both ports: an answer names those without an effect, whole or streamed."""

import json
from typing import Any

import grpc.aio
import httpx
import openai
import pytest
from docarray import DocList
from jina.proto import jina_pb2_grpc
from jina.types.request.data import DataRequest, SingleDocumentRequest

from run_gpt.api import documents
from run_gpt.api.openai.chat import ChatCompletionRequest

HEADER = "x-rungpt-ignored"
HI: Any = [{"role": "user", "content": json.dumps({"words": ["a", "b"]})}]
HINTED = {
    "messages": [{**HI[0], "cache_control": {"type": "ephemeral"}}],
    **{"store": True, "service_tier": "auto", "prompt_cache_key": "k", "metadata": {"a": "b"}},
}
# The request of the Codex CLI for a turn, shortened.
CODEX: dict[str, Any] = {
    "model": "scripted",
    "instructions": "You are a coding agent.",
    "input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "<permissions>"}]},
        {"type": "reasoning", "summary": [], "encrypted_content": "gAAA", "content": None},
        {"type": "function_call", "name": "shell", "arguments": "{}", "call_id": "c1"},
        {"type": "function_call_output", "call_id": "c1", "output": "a.txt"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": HI[0]["content"]}]},
    ],
    "tools": [
        {"type": "function", "name": "shell", "description": "Run.", "strict": False, "parameters": {"type": "object"}},
        {"type": "namespace", "name": "mcp", "description": "More.", "tools": []},
        {"type": "web_search", "external_web_access": True},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0199-uuid",
    "extra_body": {"client_metadata": {"x-codex-installation-id": "i"}},
    "text": {"verbosity": "low"},
}


@pytest.mark.parametrize("stream", [False, True])
def test_the_header_names_what_had_no_effect(stack: Any, stream: bool) -> None:
    answer = httpx.post(f"{stack.http}/v1/chat/completions", json={**HINTED, "stream": stream})
    assert answer.status_code == 200
    whole = set() if not stream else {"metadata"}
    assert set(answer.headers[HEADER].split(", ")) == {"store", "messages.cache_control", *whole}
    if not stream:
        assert answer.json()["metadata"] == {"a": "b"}


def test_without_such_a_field_there_is_no_header(stack: Any) -> None:
    assert HEADER not in httpx.post(f"{stack.http}/v1/chat/completions", json={"messages": HI}).headers


def test_the_request_of_a_coding_agent_is_answered(stack: Any) -> None:
    with openai.OpenAI(base_url=f"{stack.http}/v1", api_key="x", max_retries=0) as client:
        raw = client.responses.with_raw_response.create(**CODEX)
        events = list(raw.parse())
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == "ab"
    assert set(raw.headers[HEADER].split(", ")) == {
        *("client_metadata", "include.reasoning.encrypted_content", "reasoning.summary", "text.verbosity"),
        *("tools.namespace", "tools.web_search", "input.encrypted_content"),
    }


def test_events_have_the_usage_so_far_if_asked(stack: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    for path, body in (("chat/completions", {"messages": HI}), ("completions", {"prompt": HI[0]["content"]})):
        body = {**body, "stream": True, "stream_options": options}
        text = httpx.post(f"{stack.http}/v1/{path}", json=body).text
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        counts = [event["usage"]["completion_tokens"] for event in events]
        assert counts == sorted(counts)
        assert (counts[-1], events[-1]["choices"]) == (2, [])


async def test_the_metadata_of_a_grpc_call_name_them(stack: Any) -> None:
    document = documents.document_class(ChatCompletionRequest)(**HINTED)
    request, streamed = DataRequest(), SingleDocumentRequest()
    for one in (request, streamed):
        one.header.exec_endpoint = "/v1/chat/completions"
    request.data.docs = DocList[type(document)]([document])
    streamed.document_cls, streamed.data.doc = type(document), document
    async with grpc.aio.insecure_channel(stack.grpc) as channel:
        whole = jina_pb2_grpc.JinaSingleDataRequestRPCStub(channel).process_single_data(request)
        await whole
        assert (await whole.trailing_metadata())[HEADER] == "store, messages.cache_control"
        stream = jina_pb2_grpc.JinaSingleDocumentRequestRPCStub(channel).stream_doc(streamed)
        assert [event async for event in stream]
        assert (await stream.trailing_metadata())[HEADER] == "store, messages.cache_control, metadata"
