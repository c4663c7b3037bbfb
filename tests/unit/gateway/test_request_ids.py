"""Request ids: without these tests the log line of a failed request that a client reports could be missing."""

import logging
import re
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from run_gpt.config import GatewayConfig
from run_gpt.gateway.http import build_app
from run_gpt.gateway.http_access import guarded
from run_gpt.gateway.service import Service
from run_gpt.process.request_ids import HEADER as REQUEST_ID

MADE = re.compile(r"rungpt-[0-9a-f]{24}")


@pytest.fixture
def client() -> httpx.AsyncClient:
    pool = SimpleNamespace(replicas=[], ready=[], sure=[], retries=0, model="m", watched=True, context_length=1)
    pool.adapters = SimpleNamespace(applied=list)
    service = Service([cast("Any", pool)], GatewayConfig(log_requests=True))
    app = guarded(build_app(service), service.config, None, service.metrics.count)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_an_id_that_was_sent_comes_back_and_is_in_the_log(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "run_gpt.gateway.record"):
        for path in ("/v1/models", "/nowhere"):
            answer = await client.get(path, headers={REQUEST_ID: "my/id=1~"})
            assert answer.headers.get_list(REQUEST_ID) == ["my/id=1~"]
    assert [bool(re.search(r" id=rungpt-\S+ client_id=my/id=1~( |$)", line)) for line in caplog.messages] == [
        True,
        True,
    ]


async def test_without_one_an_answer_has_the_servers(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "run_gpt.gateway.record"):
        answers = [await client.get("/v1/models"), await client.post("/chat", json={})]
    ids = [answer.headers[REQUEST_ID] for answer in answers]
    assert all(MADE.fullmatch(one) for one in ids)
    assert len(set(ids)) == 2
    assert [f" id={one}" in line for one, line in zip(ids, caplog.messages, strict=True)] == [True, True]
    assert "client_id" not in caplog.text


@pytest.mark.parametrize("sent", ["", "x" * 129, "two words", "tab\there", "é"])
async def test_an_id_that_may_not_stand_in_a_log_is_refused(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, sent: str
) -> None:
    with caplog.at_level(logging.INFO, "run_gpt.gateway.record"):
        answer = await client.get("/v1/models", headers=[(REQUEST_ID.encode(), sent.encode())])
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_value", REQUEST_ID)
    assert MADE.fullmatch(answer.headers[REQUEST_ID])
    assert "client_id" not in caplog.text


async def test_the_longest_id_is_taken(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models", headers={REQUEST_ID: "x" * 128})).headers[REQUEST_ID] == "x" * 128


async def test_probes_have_none(client: httpx.AsyncClient) -> None:
    assert REQUEST_ID not in (await client.get("/health")).headers
