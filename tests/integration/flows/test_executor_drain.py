"""Without these tests, a rolling update or a smaller number of replicas could cut answers short, or wait for ever."""

import asyncio
import contextlib
import contextvars
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import yaml
from grpc_health.v1 import health_pb2
from test_pod_alone import ended, health, running_alone
from test_supervisor import wait_until

from run_gpt.api import answers
from run_gpt.api.pieces import Piece
from run_gpt.api.schema import GenerateRequest
from run_gpt.config import EXECUTOR_TOKEN_VARIABLE, ServeConfig
from run_gpt.errors import Unavailable
from run_gpt.flows.ports import free_ports
from run_gpt.flows.render import render_flow
from run_gpt.gateway.replica import Replica
from run_gpt.process import request_ids

LIMIT = 120.0
TOKENS = 300
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@contextlib.contextmanager
def executor(drain_seconds: float) -> "Iterator[tuple[subprocess.Popen[str], int]]":
    """Run the default model in its own pod until ready, and yield the process and its port."""
    (port,) = free_ports(1)
    config = ServeConfig(drain_seconds=drain_seconds, max_context=4096, speculate=False)
    flow = yaml.safe_load(render_flow(config, executor_address=("rungpt-executor", port)))
    with running_alone(flow, "executor") as pod:
        wait_until(lambda: health(port) == SERVING or pod.poll() is not None, LIMIT)
        assert pod.poll() is None, ended(pod)
        yield pod, port


def test_what_fails_is_logged_under_its_requests_name(caplog: pytest.LogCaptureFixture) -> None:
    """A hundred requests may run together, so the log must say which one a traceback belongs to."""
    from run_gpt.executors.causal_lm.executor import _request_error

    def fail() -> None:
        request_ids.current.set("mine")
        _request_error(ZeroDivisionError("no"))

    contextvars.copy_context().run(fail)
    (record,) = caplog.records
    assert record.getMessage() == "the request mine failed"
    assert record.exc_info is not None


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give both ends a token, as in containers; without one an executor warns."""
    monkeypatch.setenv(EXECUTOR_TOKEN_VARIABLE, "a token of the test")


@pytest.fixture
async def replicas() -> AsyncIterator[Any]:
    """Yield `replicas(port)`, which makes the gateway's connection to an executor."""
    made: list[Replica] = []

    def connect(port: int) -> Replica:
        made.append(Replica(f"127.0.0.1:{port}"))
        return made[-1]

    yield connect
    for replica in made:
        await replica.close()


def body(tokens: int) -> bytes:
    request = GenerateRequest(prompt="Once upon a time", min_new_tokens=tokens, max_new_tokens=tokens)
    return request.model_dump_json(exclude_none=True).encode()


async def unary(replica: Replica, tokens: int) -> answers.GenerateAnswer:
    return answers.GenerateAnswer.model_validate_json(await replica.ask("/generate", body(tokens), timeout=LIMIT))


async def stream(replica: Replica, tokens: int, began: asyncio.Event) -> list[Piece]:
    """Return the pieces of a stream; `began` is set with the first."""
    arrived, pieces = asyncio.Event(), list[Piece]()
    exchange = await replica.start("/generate_stream", body(tokens), request_id="s", arrived=arrived)
    exchange.limit(LIMIT)
    while exchange.has_news or not exchange.over:
        arrived.clear()
        pieces += [part for part in exchange.take() if isinstance(part, Piece)]
        if pieces:
            began.set()
        if not exchange.over:
            await arrived.wait()
    if exchange.error is not None:
        raise exchange.error
    return pieces


async def until_draining(replica: Replica) -> None:
    async with asyncio.timeout(LIMIT):
        while replica.state != "draining":
            await replica.probe()


async def test_what_runs_ends_whole_and_what_comes_is_sent_elsewhere(replicas: Any) -> None:
    with executor(drain_seconds=60) as (pod, port):
        replica, began = replicas(port), asyncio.Event()
        streamed = asyncio.create_task(stream(replica, TOKENS, began))
        whole = asyncio.create_task(unary(replica, TOKENS))
        await began.wait()
        pod.send_signal(signal.SIGTERM)
        pod.send_signal(signal.SIGTERM)
        await until_draining(replica)
        assert await asyncio.to_thread(health, port) == NOT_SERVING
        with pytest.raises(Unavailable, match="draining"):
            await unary(replicas(port), 1)
        assert not whole.done(), "the test must end after the drain has begun"
        pieces, answer = await streamed, await whole
        assert pieces[-1].finish == "length"
        assert sum(piece.tokens for piece in pieces) == answer.usage.completion_tokens == TOKENS
        assert "".join(piece.text for piece in pieces) == answer.choices[0].text
        assert await asyncio.to_thread(ended, pod) == (0, "", "")


async def test_a_drain_takes_no_longer_than_it_may(replicas: Any) -> None:
    with executor(drain_seconds=0.2) as (pod, port):
        replica, began = replicas(port), asyncio.Event()
        streamed = asyncio.create_task(stream(replica, 3000, began))
        await began.wait()
        pod.send_signal(signal.SIGTERM)
        with pytest.raises(Unavailable, match="stopped before the answer was complete"):
            await streamed
        code, _, err = await asyncio.to_thread(ended, pod)
        assert code == 0
        assert "1 requests did not finish in the 0.2 s that they had" in err
