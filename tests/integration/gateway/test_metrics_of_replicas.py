"""`/metrics` of a real gateway over real workers: the figures are true even if a worker is silent or dies."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# isort: off
import run_gpt.process._jina  # noqa: F401  (before jina)

# isort: on
import grpc
import httpx
import pytest
from jina.proto import jina_pb2
from prometheus_client.parser import text_string_to_metric_families
from waiting import wait_until

from run_gpt.api import documents as d
from run_gpt.api.schema import GenerateRequest
from run_gpt.errors import UnknownEndpoint

KEY = "alices-key-of-the-test"


def body(**script: Any) -> dict[str, Any]:
    return {"prompt": json.dumps(script)}


def metrics(stack: Any, **headers: str) -> dict[str, float]:
    """Return the samples by name without `rungpt_` and the values of the labels, in the order of label names."""
    answer = httpx.get(f"{stack.http}/metrics", headers=headers, timeout=10)
    assert answer.status_code == 200, answer.text
    found: dict[str, float] = {}
    for sample in (s for family in text_string_to_metric_families(answer.text) for s in family.samples):
        key = " ".join([sample.name.removeprefix("rungpt_"), *(v for _, v in sorted(sample.labels.items()))])
        assert key not in found, f"{key} is there twice"
        found[key] = sample.value
    return found


def words(found: dict[str, float]) -> list[float]:
    """Return the number of words that each replica counted."""
    return [value for name, value in found.items() if name.startswith("generation_tokens_total scripted 127.0.0.1:")]


async def call(stack: Any, endpoint: str) -> Any:
    """Return the answer of the gRPC port."""
    message = jina_pb2.DataRequestProto()
    message.header.exec_endpoint = endpoint
    message.data.docs.docs.append(d.document_class(GenerateRequest)(**body(words=["a"])).to_protobuf())
    async with grpc.aio.insecure_channel(stack.grpc) as channel:
        method = channel.unary_unary("/jina.JinaSingleDataRequestRPC/process_single_data")
        return await method(message.SerializeToString())


@pytest.fixture(scope="module")
def pair(a_stack: Any, tmp_path_factory: pytest.TempPathFactory, free_ports: Any) -> Iterator[Any]:
    """Yield a gateway over two workers; the last test starts one again."""
    with a_stack(tmp_path_factory.mktemp("pair"), free_ports(4), 2, {}, "ready") as running:
        yield running


def test_replicas_have_labels_and_add_up(pair: Any) -> None:
    before = metrics(pair)
    for _ in range(10):
        httpx.post(f"{pair.http}/generate", json=body(words=3))
    found = metrics(pair)
    grown = {name: value - before.get(name, 0) for name, value in found.items()}
    assert len(words(grown)) == 2
    assert sum(words(grown)) == 30
    assert found["replicas ready"] == 2
    assert grown["gateway_requests_total /generate  200"] == 10
    assert grown["gateway_request_seconds_count /generate"] == 10
    assert found["gateway_in_flight"] == grown["gateway_scrape_failures_total"] == 0


@pytest.mark.alone
def test_a_silent_replica_delays_nobody(pair: Any) -> None:
    """An operator must see the metrics of the others, and that one replica is missing, within a second."""
    stack = pair
    failures = metrics(stack)["gateway_scrape_failures_total"]  # and a warm-up: the first call imports modules
    (stack.folder / "silent-w0").touch()
    before = time.monotonic()
    found = metrics(stack)
    assert time.monotonic() - before < 3, "a second, and what a busy machine adds"
    assert len(words(found)) == 1
    assert found["gateway_scrape_failures_total"] == failures + 1
    wait_until(lambda: "gave no metrics" in stack.log_of("gateway"))
    (stack.folder / "silent-w0").unlink()
    assert len(words(metrics(stack))) == 2


def test_a_stream_that_fails_is_an_error_though_its_status_was_200(stack: Any) -> None:
    before = metrics(stack)
    httpx.post(f"{stack.http}/generate_stream", json=body(words=["a"], then="raise"))
    with httpx.stream("POST", f"{stack.http}/generate_stream", json=body(words=["a"], then="hang")) as response:
        lines = response.iter_lines()  # kept: without it, the connection is closed
        next(lines)
        assert metrics(stack)["gateway_in_flight"] == 1
    wait_until(lambda: metrics(stack)["gateway_errors_total cut_off"] > before["gateway_errors_total cut_off"])
    found = metrics(stack)
    for code in ("internal_error", "cut_off"):
        assert found[f"gateway_errors_total {code}"] - before[f"gateway_errors_total {code}"] == 1
    ended = "gateway_requests_total /generate_stream  200"
    assert found[ended] - before.get(ended, 0) == 2


def test_an_executors_refusal_is_counted_by_its_code(stack: Any) -> None:
    before = metrics(stack)
    error = {"message": "so it is", "code": "queue_full"}
    httpx.post(f"{stack.http}/generate", json=body(words=[], then="error", error=error))
    found = metrics(stack)
    assert found["gateway_errors_total queue_full"] - before["gateway_errors_total queue_full"] == 1


def test_keys_are_labels_by_name_and_prometheus_needs_one(start_stack: Any, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"alice: {KEY}\n")
    stack = start_stack(api_key_file=str(tmp_path / "keys"))
    bearer = {"Authorization": f"Bearer {KEY}"}
    assert httpx.get(f"{stack.http}/metrics").status_code == 401
    httpx.post(f"{stack.http}/generate", json=body(), headers=bearer)
    httpx.post(f"{stack.http}/generate", json=body())
    text = httpx.get(f"{stack.http}/metrics", headers=bearer).text
    assert KEY not in text
    found = metrics(stack, **bearer)
    assert found["gateway_requests_total /generate alice 200"] == 1
    assert found["gateway_requests_total /generate  401"] == 1
    assert found["gateway_errors_total invalid_api_key"] == 2
    assert found["gateway_requests_total other alice 200"] >= 1, "the scrapes themselves"


async def test_http_and_grpc_are_counted_and_metrics_are_no_endpoint_of_grpc(stack: Any) -> None:
    before = metrics(stack)
    await call(stack, "/generate")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(stack, "/metrics")
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND
    answered, refused = "gateway_requests_total /generate  OK", "gateway_requests_total other  NOT_FOUND"
    await asyncio.to_thread(wait_until, lambda: refused in metrics(stack))
    found = await asyncio.to_thread(metrics, stack)
    for name in (answered, refused):
        assert found[name] - before.get(name, 0) == 1
    code = f"gateway_errors_total {UnknownEndpoint.code}"
    assert found[code] - before[code] == 1


def test_a_replica_that_was_started_again_is_a_restart(pair: Any) -> None:
    stack = pair
    stack.kill("executor0")
    wait_until(lambda: metrics(stack)["replicas lost"] == 1)
    for _ in range(4):
        assert httpx.post(f"{stack.http}/generate", json=body()).status_code == 200
    stack.start("executor", "0")
    stack.wait_ready(2)
    found = metrics(stack)
    restarts = sorted(value for name, value in found.items() if name.startswith("replica_restarts_total"))
    assert restarts == [0, 1]
    assert found["replicas ready"] == 2
