"""The gateway's pure parts: addresses, JSON, server-sent events, the service's counting and refusing."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from run_gpt.api.answers import GenerateAnswer, Usage
from run_gpt.api.endpoints import Handler
from run_gpt.api.error_forms import openai_error
from run_gpt.api.pieces import Whole
from run_gpt.api.schema import GenerateRequest
from run_gpt.api.sse import error_event
from run_gpt.config import GatewayConfig
from run_gpt.errors import InvalidRequest, ModelNotFound, QueueFull, SetupError, Unavailable
from run_gpt.gateway.bodies import parse_body
from run_gpt.gateway.gateway import executor_addresses
from run_gpt.gateway.openapi import describe
from run_gpt.gateway.service import Service


class FakePool:
    """A pool with one ready replica that answers when the test lets it."""

    def __init__(self) -> None:
        self.ready = self.sure = [object()]
        self.replicas: list[object] = []
        self.model, self.watched = "m", True
        self.adapters = SimpleNamespace(applied=list)
        self.go = asyncio.Event()
        self.stopped = ""

    def check_ready(self) -> None:
        if not self.ready:
            raise Unavailable("no replica")

    def stop(self, why: str) -> None:
        self.stopped = why
        self.go.set()

    async def whole(self, request: Any, request_id: str, timeout: float) -> Whole:
        """Answer; `created` has the seconds that the answer may take."""
        await self.go.wait()
        if self.stopped:
            raise Unavailable(self.stopped)
        usage = Usage(prompt_tokens=1, completion_tokens=0, total_tokens=1)
        answer = GenerateAnswer(id=request_id, created=round(timeout), model="m", usage=usage, choices=[])
        return Whole(answer.to_json().encode())


def service(**config: float) -> tuple[Service, FakePool]:
    pool = FakePool()
    return Service([pool], GatewayConfig(**config)), pool  # type: ignore[arg-type]


def test_addresses_in_each_form_that_jina_gives() -> None:
    assert executor_addresses('{"e": ["grpc://127.0.0.1:1", "h:2"]}') == {"e": ["127.0.0.1:1", "h:2"]}
    assert executor_addresses('{"e": {"GRPC": ["h:1"]}}') == {"e": ["h:1"]}
    assert executor_addresses('{"b": ["h:1"], "a": ["h:2"]}') == {"b": ["h:1"], "a": ["h:2"]}
    with pytest.raises(SetupError, match="an executor"):
        executor_addresses("{}")
    with pytest.raises(SetupError, match="only grpc"):
        executor_addresses('{"a": ["grpcs://h:1"]}')
    assert executor_addresses('{"e": ["grpc://engines.ns.svc:1", "[::1]:2"]}') == {"e": ["engines.ns.svc:1", "[::1]:2"]}
    for bad in ("grpc://h", "grpc://h:x", "a..b:1"):
        with pytest.raises(SetupError, match=f"executor address {bad}: "):
            executor_addresses(json.dumps({"a": [bad]}))


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b'"x"', b"null", b"NaN", b"\xff", b'{"a": Infinity}'])
def test_a_body_that_is_no_object_is_an_invalid_request_in_one_line(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_body(body)
    assert "\n" not in raised.value.message


def test_an_error_event_is_one_event_with_the_error_object() -> None:
    kind, data, *rest = error_event(openai_error(QueueFull("full\nof ünïcode"))).decode().split("\n")
    assert (kind, rest) == ("event: error", ["", ""])
    assert json.loads(data.removeprefix("data: "))["error"]["code"] == "queue_full"


async def test_requests_are_counted_and_bounded_by_the_shorter_limit() -> None:
    served, pool = service(request_timeout=10)
    tasks = [asyncio.create_task(served.answer(GenerateRequest(prompt="x"), t)) for t in (None, 3, 99)]
    await asyncio.sleep(0)
    assert served.in_flight == 3
    pool.go.set()
    answers: list[Any] = await asyncio.gather(*tasks)
    assert [a.created for a in answers] == [10, 3, 10]
    assert len({a.id for a in answers}) == 3
    assert served.in_flight == 0


async def test_another_model_is_refused_by_name() -> None:
    served, _ = service()
    with pytest.raises(ModelNotFound, match=r"'other'.*'m'"):
        served.check(GenerateRequest(prompt="x", model="other"), Handler.MODEL)
    served.check(GenerateRequest(prompt="x", model="m"), Handler.MODEL)


async def test_draining_refuses_new_requests_and_waits_for_running_ones() -> None:
    served, pool = service(drain_seconds=10)
    running = asyncio.create_task(served.answer(GenerateRequest(prompt="x")))
    await asyncio.sleep(0)
    drain = asyncio.create_task(served.drain())
    await asyncio.sleep(0)
    assert not served.ready
    with pytest.raises(Unavailable, match="draining"):
        await served.answer(GenerateRequest(prompt="x"))
    assert not drain.done()
    pool.go.set()
    await asyncio.gather(running, drain)
    assert pool.stopped == ""


async def test_a_drain_ends_what_takes_too_long() -> None:
    served, _ = service(drain_seconds=0.01)
    running = asyncio.create_task(served.answer(GenerateRequest(prompt="x")))
    await asyncio.sleep(0)
    await served.drain()
    with pytest.raises(Unavailable, match="did not end in time"):
        await running


async def test_without_its_watchers_a_service_is_not_ready() -> None:
    """A server whose background task died must not report that it is ready."""
    served, pool = service()
    assert served.ready
    pool.watched = False
    assert not served.ready


def test_the_description_is_whole() -> None:
    """Each reference has a target; a client generator would fail on one without."""
    document = describe("1")
    text = json.dumps(document)
    references = {part.split('"')[0] for part in text.split('"$ref": "#/components/schemas/')[1:]}
    assert references <= set(document["components"]["schemas"])
    assert {"max_tokens", "n", "stop_str"} <= set(document["components"]["schemas"]["GenerateRequest"]["properties"])
