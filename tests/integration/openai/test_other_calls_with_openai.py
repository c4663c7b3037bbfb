"""Models, embeddings and tokens. Without these tests, programs could not rely on model lists, vectors or counts."""

import asyncio
import base64
import struct
from typing import Any

import openai
import pytest
import requests

from run_gpt.api.openai.embeddings import EmbeddingRequest

TEXTS = ["A cat sleeps.", "A kitten naps.", "The engine broke down."]


def both(base_url: str, call: Any) -> tuple[Any, Any]:
    """Return the results of a call with the sync and with the async client."""
    options: dict[str, Any] = {"base_url": base_url, "api_key": "none", "max_retries": 0, "timeout": 120}

    async def later() -> Any:
        async with openai.AsyncOpenAI(**options) as client:
            return await call(client)

    with openai.OpenAI(**options) as client:
        return call(client), asyncio.run(later())


def test_models_are_listed_and_looked_up(base_url: str) -> None:
    for page in both(base_url, lambda client: client.models.list()):
        (listed,) = page.data
        assert (listed.id, listed.object, listed.owned_by) == ("smollm2", "model", "rungpt")
        assert listed.max_model_len == 8192
    for model in both(base_url, lambda client: client.models.retrieve("smollm2")):
        assert model == listed


@pytest.mark.parametrize("name", ["gpt-5", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_a_model_that_is_not_served_is_not_found(client: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve(name)
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


def test_embeddings_of_similar_texts_are_similar(base_url: str) -> None:
    for answer in both(base_url, lambda client: client.embeddings.create(model="smollm2", input=TEXTS)):
        assert [item.index for item in answer.data] == [0, 1, 2]
        cat, kitten, engine = (item.embedding for item in answer.data)
        assert sum(x * x for x in cat) == pytest.approx(1, abs=1e-4)
        assert sum(a * b for a, b in zip(cat, kitten, strict=True)) > sum(
            a * b for a, b in zip(cat, engine, strict=True)
        )
        assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(TEXTS)


def test_embeddings_as_numbers_and_as_base64_are_the_same(client: openai.OpenAI, base_url: str, plain: Any) -> None:
    """The client asks for base64 by default."""
    floats = client.embeddings.create(model="smollm2", input=TEXTS, encoding_format="float", user="anna")
    packed = requests.post(
        f"{base_url}/embeddings", json={"input": TEXTS, "encoding_format": "base64"}, timeout=60
    ).json()
    assert {type(item["embedding"]) for item in packed["data"]} == {str}
    ids = client.embeddings.create(model="smollm2", input=[plain.tokenizer(text)["input_ids"] for text in TEXTS])
    for item, text, by_ids in zip(floats.data, packed["data"], ids.data, strict=True):
        data = base64.b64decode(text["embedding"])
        assert len(data) == 4 * 576
        assert item.embedding == pytest.approx(struct.unpack("<576f", data), abs=1e-6)
        assert item.embedding == pytest.approx(by_ids.embedding, abs=1e-4)
    assert ids.usage == floats.usage


@pytest.mark.parametrize(
    ("body", "param"),
    [
        *(({name: 2}, name) for name in EmbeddingRequest.FIELDS.refused),
        ({"no_such_field": 1}, "no_such_field"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[1], [99999]]}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
    ],
    ids=str,
)
def test_what_is_not_possible_is_named(client: openai.OpenAI, body: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.embeddings.create(model="smollm2", input="x", extra_body=body)
    assert raised.value.param == param
    assert param.split("[")[0] in raised.value.message
    assert "texts" not in raised.value.message


def test_too_long_a_text_to_embed_and_another_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="8192") as long:
        client.embeddings.create(model="smollm2", input=["short", "x " * 9000])
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "input")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="text-embedding-3-small", input="x")


def test_tokens_are_those_of_the_tokenizer_and_back(base_url: str, plain: Any) -> None:
    """Programs count tokens before they send a prompt."""
    root = base_url.removesuffix("/v1")

    def post(path: str, **body: Any) -> Any:
        return requests.post(f"{root}{path}", json={"model": "smollm2", **body}, timeout=60).json()

    text = "naïve 日本 😀\n<|im_start|>"
    got = post("/tokenize", prompt=text)
    assert got["tokens"] == plain.tokenizer(text)["input_ids"]
    assert (got["count"], got["max_model_len"]) == (len(got["tokens"]), 8192)
    assert post("/detokenize", tokens=got["tokens"])["prompt"] == text
    turns = [{"role": "user", "content": "Hi"}]
    chat = post("/tokenize", messages=turns)
    assert chat["tokens"] == plain.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    for path, body, param in (
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": turns}, "prompt"),
        ("/tokenize", {"prompt": "x", "tools": []}, "tools"),
        ("/detokenize", {"tokens": [49152]}, "tokens"),
        ("/detokenize", {"tokens": []}, "tokens"),
    ):
        assert post(path, **body)["error"]["param"] == param


def test_what_tokenize_counts_is_what_a_chat_uses(base_url: str, client: openai.OpenAI) -> None:
    turns: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    tool: Any = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
    for tools in ({}, {"tools": [tool]}):
        body = {"messages": turns, **tools}
        counted = requests.post(f"{base_url.removesuffix('/v1')}/tokenize", json=body, timeout=60).json()["count"]
        answer = client.chat.completions.create(model="smollm2", messages=turns, max_tokens=1, **tools)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == counted
