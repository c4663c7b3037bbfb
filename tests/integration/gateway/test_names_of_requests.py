"""A client's request id comes back and reaches the replica: without it users could not find their lines in the logs."""

import asyncio
import json
import re
from typing import Any

# isort: off
import run_gpt.process._jina  # noqa: F401  (before jina)

# isort: on
import grpc
import httpx
import pytest
from waiting import wait_until

from run_gpt.client import Client
from run_gpt.errors import InvalidRequest, QueueFull, RequestError, Unavailable

MADE = r"rungpt-[0-9a-f]{24}"
UNARY = "/jina.JinaSingleDataRequestRPC/process_single_data"
FULL = {"message": "x", "code": "queue_full"}


def script(**fields: Any) -> str:
    return json.dumps(fields)


NAME = script(words=["$request_id"])


@pytest.fixture(params=["http", "grpc"])
def model(request: pytest.FixtureRequest, stack: Any) -> Any:
    """Return our client, over each port."""
    with Client().get_model(endpoint=stack.http if request.param == "http" else f"grpc://{stack.grpc}") as model:
        yield model


def test_the_replica_knows_the_name_that_the_client_gave(model: Any) -> None:
    assert model.generate(NAME, request_id="my/id=1~").text == "my/id=1~"
    assert model.chat(NAME, request_id="a-chat").text == "a-chat"
    assert "".join(event.text for event in model.generate_stream(NAME, request_id="a-stream")) == "a-stream"
    assert [answer.text for answer in model.generate([NAME, NAME], request_id="both")] == ["both", "both"]


def test_without_one_the_replica_knows_the_answers_id(model: Any) -> None:
    answer = model.generate(NAME)
    assert re.fullmatch(MADE, answer.text)
    assert answer.text == answer.id


def test_a_request_that_stands_for_several_has_one_name(stack: Any) -> None:
    """An OpenAI request may have several prompts: a search for its id must find all of them."""
    answer = httpx.post(f"{stack.http}/v1/completions", json={"model": "scripted", "prompt": [NAME, NAME, NAME]})
    assert {choice["text"] for choice in answer.json()["choices"]} == {answer.headers["x-request-id"]}


@pytest.mark.parametrize("sent", ["mine", None])
def test_an_error_has_the_name_of_its_request(model: Any, sent: str | None) -> None:
    """The id is the fact that a user can report to the operator."""
    failing = script(words=["a", "b"], then="error", error=FULL)
    for call in (model.generate, model.generate_stream, model.chat, model.chat_stream):
        with pytest.raises(QueueFull) as raised:
            list(call(failing, request_id=sent))
        name = raised.value.request_id
        assert name == sent if sent else re.fullmatch(MADE, name)
        assert "request_id" not in raised.value.to_dict()


def test_what_never_reached_a_server_has_the_name_that_it_would_have_had(free_ports: Any) -> None:
    (port,) = free_ports(1)
    for endpoint in (f"http://127.0.0.1:{port}", f"grpc://127.0.0.1:{port}"):
        with Client().get_model(endpoint=endpoint) as model:
            for sent in ("mine", None):
                with pytest.raises(Unavailable) as raised:
                    model.generate("x", request_id=sent)
                assert raised.value.request_id == sent


@pytest.mark.parametrize("sent", ["", "two words", "x" * 129, "line\n", "é"])
def test_a_name_that_may_not_stand_in_a_log_is_not_sent(model: Any, sent: str) -> None:
    for call in (model.generate, model.chat_stream):
        with pytest.raises(InvalidRequest, match="printable") as raised:
            list(call("x", request_id=sent))
        assert raised.value.param == "request_id"


# The gRPC port itself


def call(stack: Any, method: str, *metadata: tuple[str, str], streaming: bool = False) -> tuple[Any, Any]:
    """Return the initial metadata of a call with an empty message, and the error that it ends with.

    It uses gRPC's threaded client: the error of the asyncio one has no initial metadata if both come at once.
    """
    with grpc.insecure_channel(stack.grpc) as channel:
        if streaming:
            made: Any = channel.stream_stream(method)(iter([b""]), metadata=metadata, timeout=20)
        else:
            made = channel.unary_stream(method)(b"", metadata=metadata, timeout=20)
        try:
            list(made)
        except grpc.RpcError as error:
            return dict(made.initial_metadata()), error
        return dict(made.initial_metadata()), None


@pytest.mark.parametrize(
    ("method", "streaming", "fails"),
    [
        (UNARY, False, True),
        ("/jina.JinaSingleDocumentRequestRPC/stream_doc", False, True),
        ("/jina.JinaRPC/Call", True, True),
        ("/jina.JinaDiscoverEndpointsRPC/endpoint_discovery", False, False),
    ],
)
def test_a_call_begins_with_its_name_however_it_ends(stack: Any, method: str, streaming: bool, fails: bool) -> None:
    named, error = call(stack, method, ("x-request-id", "mine"), streaming=streaming)
    assert named["x-request-id"] == "mine"
    assert (error is not None) == fails
    unnamed, _ = call(stack, method, streaming=streaming)
    assert re.fullmatch(MADE, unnamed["x-request-id"])


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("sent", ["", "x" * 129, "two words"])
def test_a_name_that_may_not_stand_in_the_log_is_refused(stack: Any, streaming: bool, sent: str) -> None:
    method = "/jina.JinaRPC/Call" if streaming else UNARY
    named, error = call(stack, method, ("x-request-id", sent), streaming=streaming)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    told = json.loads(dict(error.trailing_metadata())["rungpt-error"])
    assert (told["code"], told["param"]) == ("invalid_value", "X-Request-Id")
    assert re.fullmatch(MADE, named["x-request-id"])


def test_probes_have_no_name(stack: Any) -> None:
    named, _ = call(stack, "/grpc.health.v1.Health/Check")
    assert "x-request-id" not in named


async def test_requests_at_the_same_time_keep_their_own_names(stack: Any) -> None:
    slow = script(words=["a ", "$request_id"], delay=0.05)
    async with Client().get_model(endpoint=f"grpc://{stack.grpc}") as model:
        answers = await asyncio.gather(*(model.agenerate(slow, request_id=f"n{i}") for i in range(20)))
    assert [answer.text for answer in answers] == [f"a n{i}" for i in range(20)]


# The logs


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_as_json_the_lines_of_gateway_and_worker_about_a_request_have_its_name(start_stack: Any, protocol: str) -> None:
    """One search in the logs finds the work of both for the request, including the traceback of a failure."""
    stack = start_stack(log_requests=True, env={"RUNGPT_LOG_FORMAT": "json"})
    with Client().get_model(endpoint=stack.http if protocol == "http" else f"grpc://{stack.grpc}") as model:
        model.generate(NAME, request_id="good")
        with pytest.raises(RequestError):
            model.generate(script(words=[], then="raise"), request_id="bad")
    wait_until(lambda: "error=internal_error" in stack.log_of("gateway"))
    wait_until(lambda: "the script says so" in stack.log_of("executor0"))
    of_gateway, of_worker = (
        [json.loads(line) for line in stack.log_of(name).splitlines()] for name in ("gateway", "executor0")
    )
    records = [line for line in of_gateway if line["logger"] == "run_gpt.gateway.record"]
    assert [(line["request_id"], line["client_id"], line.get("error")) for line in records] == [
        ("good", "good", None),
        ("bad", "bad", "internal_error"),
    ]
    assert {line["method"] for line in records} == {"POST" if protocol == "http" else "gRPC"}
    assert all(re.fullmatch(MADE, line["id"]) and line["pod"] == "gateway" for line in records)
    (failed,) = [line for line in of_worker if "the script says so" in line.get("exception", "")]
    assert (failed["request_id"], failed["pod"], failed["level"]) == ("bad", "executor", "ERROR")
    assert failed["message"] == "the request bad failed"
    assert "ZeroDivisionError" in failed["exception"]
