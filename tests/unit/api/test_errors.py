"""The error table. A user's `except` must catch the same errors over the wire as in one process."""

import pytest

from run_gpt import errors
from run_gpt.link.frames import decode_answering, encode
from run_gpt.link.serving import Reply

CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.RequestError)]


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls is not errors.RequestError])
def test_each_error_comes_back_as_its_own_class(cls):
    error = errors.error_from_dict(cls("what", param="field").to_dict())
    assert type(error) is cls
    assert (error.message, error.param) == ("what", "field")


@pytest.mark.parametrize("fields", [{}, {"code": "?", "message": None}, {"code": None}])
def test_an_unknown_error_is_an_internal_one(fields):
    error = errors.error_from_dict(fields)
    assert type(error) is errors.InternalError
    assert error.message


def test_the_table_of_the_design():
    table = {(cls.http_status, cls.grpc_code) for cls in CLASSES}
    assert table == {
        (400, "INVALID_ARGUMENT"),
        (401, "UNAUTHENTICATED"),
        (403, "PERMISSION_DENIED"),
        (404, "NOT_FOUND"),
        (405, "UNIMPLEMENTED"),
        (413, "RESOURCE_EXHAUSTED"),
        (415, "INVALID_ARGUMENT"),
        (429, "RESOURCE_EXHAUSTED"),
        (500, "INTERNAL"),
        (503, "UNAVAILABLE"),
        (504, "DEADLINE_EXCEEDED"),
    }


def test_a_full_queue_says_over_the_inner_wire_when_to_try_again():
    reply = Reply(3, lambda reply: None)
    reply.end(errors.QueueFull("full", retry_after=17))
    [failed] = decode_answering(encode(reply.take()))
    error = errors.error_from_dict(failed.error)
    assert (type(error), error.message, error.retry_after) == (errors.QueueFull, "full", 17)
    assert errors.error_from_dict(errors.QueueFull("full").to_dict()).retry_after == 1
