"""The client's own gRPC messages compared with docarray's and Jina's. A difference would lose or garble text."""

import math

from docarray import BaseDoc
from docarray.proto import DocProto
from hypothesis import given
from hypothesis import strategies as st
from jina.proto import jina_pb2

import run_gpt.process._jina  # noqa: F401  (before jina)
from run_gpt.api import documents, schema
from run_gpt.client import wire

text = st.text(st.characters(codec="utf-8"))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31 - 1) | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
fields = st.dictionaries(text, values, max_size=5)


class AnyDocument(BaseDoc):
    """A document whose field takes any value."""

    fields: dict


@given(fields)
def test_docarray_reads_what_we_write(fields):
    message = DocProto.FromString(wire.document({"fields": fields}).SerializeToString())
    assert AnyDocument.from_protobuf(message).fields == fields


@given(fields)
def test_we_read_what_docarray_writes(fields):
    message = AnyDocument(fields=fields).to_protobuf().SerializeToString()
    assert wire.fields_of(type(wire.document({})).FromString(message))["fields"] == fields


def test_floats_stay_floats_and_truth_values_stay_truth_values():
    read = wire.fields_of(wire.document({"a": 1.0, "b": True, "c": 1, "d": math.inf, "e": 0, "f": ""}))
    assert [(type(value), value) for value in read.values()] == [
        (float, 1.0),
        (bool, True),
        (int, 1),
        (float, math.inf),
        (int, 0),
        (str, ""),
    ]


def test_the_door_reads_our_requests():
    request = schema.GenerateRequest.parse(
        {"prompt": "é\u2028", "stop": ["a"], "temperature": 1, "logit_bias": {"5": 1.5}, "do_sample": False, "n": 3}
    )
    chat = schema.ChatRequest.parse({"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "x"}]})
    for one in (request, chat):
        unary = jina_pb2.DataRequestProto.FromString(wire.unary_message("/x", one).SerializeToString())
        streamed = jina_pb2.SingleDocumentRequestProto.FromString(wire.stream_message("/x", one).SerializeToString())
        assert unary.header.exec_endpoint == streamed.header.exec_endpoint == "/x"
        assert unary.header.request_id
        for message in (unary.data.docs.docs[0], streamed.document):
            assert documents.message_to_request(type(one), message) == one
