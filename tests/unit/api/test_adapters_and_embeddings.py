"""Requests for vectors and for changes of adapters: they are checked, and the same at both ends of the wire."""

import math
import struct

import pytest
from docarray.proto import DocProto
from jina.proto import jina_pb2

import run_gpt.process._jina  # noqa: F401  (before jina)
from run_gpt.api import documents
from run_gpt.api.adapters import AdapterList, ListAdaptersRequest, LoadAdapterRequest, UnloadAdapterRequest
from run_gpt.api.embeddings import MAX_TEXTS, Embedding, Embeddings, EmbeddingUsage, EmbedRequest
from run_gpt.client import wire
from run_gpt.errors import InvalidRequest

COMMON = {"id": "x", "created": 1_700_000_000, "model": "m"}
NUMBERS = [0.1, -1.0, 0.0, math.pi, 1e-30, *struct.unpack("2f", struct.pack("2f", 0.1, -2.0 / 3.0))]
REQUESTS = [
    EmbedRequest.parse({"texts": ["é\u2028", "x"], "pooling": "last", "adapter": "en", "model": "m"}),
    EmbedRequest.parse({"texts": "one text"}),
    ListAdaptersRequest.parse({}),
    LoadAdapterRequest.parse({"name": "en-1.0", "path": "org/adapter"}),
    UnloadAdapterRequest.parse({"name": "5"}),
]
ANSWERS = [
    Embeddings(
        data=[Embedding(index=0, embedding=NUMBERS), Embedding(index=1, embedding=NUMBERS[::-1])],
        usage=EmbeddingUsage(prompt_tokens=3, total_tokens=3),
        **COMMON,
    ),
    AdapterList(adapters=["b", "a"], default="b", **COMMON),
    AdapterList(adapters=[], **COMMON),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
def test_a_request_comes_back_as_it_was(request_):
    document = DocProto.FromString(documents.request_to_document(request_).to_protobuf().SerializeToString())
    assert documents.message_to_request(type(request_), document) == request_
    clients = jina_pb2.DataRequestProto.FromString(wire.unary_message("/x", request_).SerializeToString())
    assert documents.message_to_request(type(request_), clients.data.docs.docs[0]) == request_


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: type(answer).__name__)
def test_an_answer_comes_back_as_it_was_to_the_last_bit(answer):
    assert documents.document_to_answer(type(answer), documents.answer_to_document(answer)) == answer
    assert type(answer).model_validate_json(answer.to_json()) == answer


def test_the_shape_is_that_of_openai():
    assert ANSWERS[0].model_dump(exclude={"data", "id", "created"}) == {
        "object": "list",
        "model": "m",
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }
    assert ANSWERS[0].model_dump()["data"][0] == {"object": "embedding", "index": 0, "embedding": NUMBERS}
    assert ANSWERS[0].vectors == [NUMBERS, NUMBERS[::-1]]


@pytest.mark.parametrize(
    ("model", "fields", "param"),
    [
        (EmbedRequest, {"texts": []}, "texts"),
        (EmbedRequest, {"texts": ["x"] * (MAX_TEXTS + 1)}, "texts"),
        (EmbedRequest, {"texts": ["x", ""]}, "texts[1]"),
        (EmbedRequest, {"texts": "x", "pooling": "max"}, "pooling"),
        (EmbedRequest, {"texts": "x", "max_new_tokens": 1}, "max_new_tokens"),
        (LoadAdapterRequest, {"name": "x"}, "path"),
        (LoadAdapterRequest, {"name": "../x", "path": "p"}, "name"),
        (LoadAdapterRequest, {"name": "x" * 101, "path": "p"}, "name"),
        (UnloadAdapterRequest, {"name": ""}, "name"),
        (UnloadAdapterRequest, {"name": "x\n"}, "name"),
        (ListAdaptersRequest, {"all": True}, "all"),
    ],
)
def test_what_is_wrong_is_refused_by_name(model, fields, param):
    with pytest.raises(InvalidRequest) as raised:
        model.parse(fields)
    assert raised.value.param == param


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
def test_none_of_them_can_be_streamed(request_):
    with pytest.raises(InvalidRequest):
        request_.check_stream()
