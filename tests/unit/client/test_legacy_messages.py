"""Older and new messages on one port. A message taken for the other kind is a lost or garbled request."""

from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st
from jina.proto import jina_pb2

import run_gpt.process._jina  # noqa: F401  (before jina)
from run_gpt.api import schema
from run_gpt.client import wire
from run_gpt.gateway.legacy import LegacyRequest, is_legacy, parameters_of

text = st.text(st.characters(codec="utf-8"))
some_text = text.filter(bool)
# docarray 0.21 gives each document an id of 32 hexadecimal digits; a user may give another one.
ids = st.uuids().map(lambda uuid: uuid.hex) | st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]))


@given(ids, st.dictionaries(text, text | st.booleans() | st.floats(allow_nan=False), min_size=1), text)
def test_an_older_message_is_known(id_, tags, content):
    request = LegacyRequest()
    document = request.data.docs.docs.add(id=id_.encode(), text=content)
    document.tags.update(tags)
    request.parameters.update({"max_new_tokens": 5})
    assert is_legacy(request.SerializeToString()) is True


@given(some_text, st.none() | st.lists(some_text, max_size=3), st.integers(1, 9))
def test_a_new_message_is_known(prompt, stop, number):
    request = schema.GenerateRequest.parse({"prompt": prompt, "stop": stop, "max_new_tokens": number})
    assert is_legacy(wire.unary_message("/generate", request).SerializeToString()) is False


@given(st.dictionaries(text, text, min_size=1))
def test_a_new_message_of_docarray_is_known(fields):
    message = jina_pb2.DataRequestProto()
    document = message.data.docs.docs.add()
    for name, value in fields.items():
        document.data[name].text = value
    assert is_legacy(message.SerializeToString()) is False


@given(st.binary(max_size=60))
def test_no_bytes_break_the_look(message):
    assert is_legacy(message) in (True, False)


def test_a_message_without_documents_is_a_new_one():
    """A stream is not kept in memory until a message has some."""
    assert is_legacy(b"") is False
    message = jina_pb2.DataRequestProto()
    message.header.exec_endpoint = "/generate"
    message.data.docs.SetInParent()
    assert is_legacy(message.SerializeToString()) is False


def test_whole_numbers_become_integers_again():
    parameters = Struct()
    parameters.update(
        {
            "max_new_tokens": 100,
            "temperature": 0.5,
            "do_sample": True,
            "seed": None,
            "stop": ["a", "b"],
            "logit_bias": {"5": 2, "6": 1.5},
        }
    )
    read = parameters_of(parameters)
    assert read == {
        "max_new_tokens": 100,
        "temperature": 0.5,
        "do_sample": True,
        "seed": None,
        "stop": ["a", "b"],
        "logit_bias": {"5": 2, "6": 1.5},
    }
    assert type(read["max_new_tokens"]) is int
    assert schema.GenerateRequest.parse({**read, "prompt": "x"}).max_new_tokens == 100


def test_the_older_clients_documented_defaults_are_taken():
    """Its docstring has these defaults, so users write them out."""
    defaults = {
        "max_new_tokens": None,
        "num_beams": 1,
        "do_sample": False,
        "temperature": 1.0,
        "top_k": 1,
        "top_p": 0.9,
        "repetition_penalty": 1.0,
        "length_penalty": 1.0,
        "no_repeat_ngram_size": 0,
    }
    parameters = Struct()
    parameters.update(defaults)
    request = schema.GenerateRequest.parse({**parameters_of(parameters), "prompt": "x"})
    assert (request.samples, request.length_penalty) == (False, None)
    parameters.update({"num_beams": 2, "length_penalty": 1.0})
    assert parameters_of(parameters)["length_penalty"] == 1
