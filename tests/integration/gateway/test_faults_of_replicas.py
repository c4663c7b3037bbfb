"""Faults of replicas that are missing, die, are slow or stop: users notice as little as possible, and nothing false."""

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from waiting import wait_until

OF_A_STREAM = {"words": 100_000, "delay": 0.01}


def body(**script: Any) -> dict[str, Any]:
    return {"prompt": json.dumps(script)}


def last_event(text: str) -> str:
    return text.strip().split("\n\n")[-1]


async def read_stream(client: httpx.AsyncClient, stack: Any, request: dict[str, Any], begun: list[str]) -> str:
    """Return the whole text of a stream; append its first line to `begun` when it arrives."""
    async with client.stream("POST", f"{stack.http}/generate_stream", json=request) as response:
        lines = response.aiter_lines()
        first = await anext(lines)
        begun.append(first)
        return "\n".join([first, *[line async for line in lines]])


def health(stack: Any) -> int:
    with grpc.insecure_channel(stack.grpc) as channel:
        return int(health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5).status)


def test_readiness_follows_the_replicas(start_stack: Any) -> None:
    """A load balancer that follows /ready must never send a request to a server that cannot answer it."""
    stack = start_stack(replicas=1, workers=0)
    assert httpx.get(f"{stack.http}/health").status_code == 200
    assert httpx.get(f"{stack.http}/ready").status_code == 503
    assert stack.ready()["replicas"]["each"][0]["state"] == "connecting"
    assert health(stack) == health_pb2.HealthCheckResponse.NOT_SERVING
    refused = httpx.post(f"{stack.http}/generate", json=body())
    assert refused.status_code == 503
    assert "loading" in refused.json()["error"]["message"]

    stack.start("executor", "0")
    stack.wait_ready(1)
    wait_until(lambda: health(stack) == health_pb2.HealthCheckResponse.SERVING)
    assert httpx.post(f"{stack.http}/generate", json=body()).status_code == 200

    stack.kill("executor0")
    stack.processes.pop("executor0")
    wait_until(lambda: httpx.get(f"{stack.http}/ready").status_code == 503, 3)
    assert stack.ready()["replicas"]["each"][0]["state"] == "lost"
    wait_until(lambda: health(stack) == health_pb2.HealthCheckResponse.NOT_SERVING)
    assert httpx.post(f"{stack.http}/generate", json=body()).status_code == 503

    stack.start("executor", "0")
    stack.wait_ready(1)
    assert httpx.post(f"{stack.http}/generate", json=body()).status_code == 200


def test_a_replica_that_says_it_is_dead_gets_no_request(start_stack: Any) -> None:
    stack = start_stack(state="dead")
    wait_until(lambda: stack.ready()["replicas"]["each"][0]["state"] == "dead", 40)
    assert httpx.get(f"{stack.http}/ready").status_code == 503
    assert httpx.post(f"{stack.http}/generate", json=body()).status_code == 503


@pytest.fixture(scope="module")
def pair(a_stack: Any, tmp_path_factory: pytest.TempPathFactory, free_ports: Any) -> Iterator[Any]:
    """Yield a gateway over two workers; the last tests kill one and end the gateway."""
    with a_stack(tmp_path_factory.mktemp("pair"), free_ports(4), 2, {}, "ready") as running:
        yield running


async def test_requests_go_to_the_replica_with_the_fewest(pair: Any) -> None:
    stack, so_far = pair, len(pair.journal)
    async with httpx.AsyncClient(timeout=30) as client:
        stuck = asyncio.create_task(client.post(f"{stack.http}/generate", json=body(words=[], then="hang")))
        await asyncio.to_thread(wait_until, lambda: len(stack.journal) == so_far + 1)
        busy = stack.journal[so_far][2]
        for _ in range(6):
            assert (await client.post(f"{stack.http}/generate", json=body(words=["a"]))).status_code == 200
        stuck.cancel()
        await asyncio.to_thread(wait_until, lambda: stack.journal[-1][0] == "cancelled")
    assert [who for what, _, who in stack.journal[so_far + 1 :] if what == "begin" and who == busy] == []


async def test_idle_replicas_take_turns(pair: Any) -> None:
    so_far = len(pair.journal)
    async with httpx.AsyncClient(timeout=30) as client:
        for _ in range(6):
            await client.post(f"{pair.http}/generate", json=body(words=["a"]))
    begun = [who for what, _, who in pair.journal[so_far:] if what == "begin"]
    assert sorted(begun) == ["w0"] * 3 + ["w1"] * 3


async def test_one_of_two_replicas_is_killed_under_load(pair: Any) -> None:
    """The other replica answers all unary requests; streams on the killed one end with an error, none repeats text."""
    stack, so_far = pair, len(pair.journal)
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=100)) as client:
        post = [
            asyncio.create_task(client.post(f"{stack.http}/generate", json=body(words=20, delay=0.05)))
            for _ in range(20)
        ]
        long = body(words=60, delay=0.05)
        begun: list[str] = []
        streams = [asyncio.create_task(read_stream(client, stack, long, begun)) for _ in range(10)]
        await asyncio.to_thread(wait_until, lambda: len(begun) == 10 and len(stack.journal) == so_far + 30)
        await asyncio.to_thread(stack.kill, "executor1")
        stack.processes.pop("executor1")
        answers = await asyncio.gather(*post)
        texts = await asyncio.gather(*streams)
    whole = "".join(f"{i} " for i in range(20))
    assert [a.status_code for a in answers] == [200] * 20
    assert {a.json()["choices"][0]["text"] for a in answers} == {whole}
    broken = [text for text in texts if last_event(text).startswith("event: error")]
    assert broken
    worker = {request_id: who for what, request_id, who in stack.journal if what == "begin"}
    for text in texts:
        words = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        assert (text in broken) == (worker[words[0]["id"]] == "w1")
        got = "".join(w["choices"][0]["text"] for w in words if "choices" in w)
        assert "".join(f"{i} " for i in range(60)).startswith(got)  # from the start, once
        assert text in broken or got.endswith(" 59 ")


def test_an_idle_gateway_with_open_connections_ends_at_once(pair: Any) -> None:
    stack = pair
    with httpx.Client() as client:
        client.get(f"{stack.http}/ready")
        begun = time.monotonic()
        stack.processes["gateway"].send_signal(signal.SIGTERM)
        assert stack.processes["gateway"].wait(10) == 0
    assert time.monotonic() - begun < 3
    assert "Traceback" not in stack.log


def test_the_servers_own_deadline(start_stack: Any) -> None:
    stack = start_stack(request_timeout=0.5)
    unary = httpx.post(f"{stack.http}/generate", json=body(words=[], then="hang"))
    assert unary.status_code == 504
    assert "0.5 s" in unary.json()["error"]["message"]
    text = httpx.post(f"{stack.http}/generate_stream", json=body(words=["a"], then="hang")).text
    assert last_event(text).startswith("event: error")
    assert "deadline_exceeded" in last_event(text)
    wait_until(lambda: [line[0] for line in stack.journal].count("cancelled") == 2)


async def test_sigterm_lets_running_requests_finish(start_stack: Any) -> None:
    """A deployment must not cut answers in the middle."""
    stack = start_stack(drain_seconds=20.0)
    async with httpx.AsyncClient(timeout=30) as client:
        stream = asyncio.create_task(client.post(f"{stack.http}/generate_stream", json=body(words=20, delay=0.1)))
        unary = asyncio.create_task(client.post(f"{stack.http}/generate", json=body(words=20, delay=0.1)))
        await asyncio.to_thread(wait_until, lambda: len(stack.journal) == 2)
        stack.processes["gateway"].send_signal(signal.SIGTERM)
        await asyncio.to_thread(wait_until, lambda: stack.ready()["draining"])
        assert (await client.get(f"{stack.http}/ready")).status_code == 503
        refused = await client.post(f"{stack.http}/generate", json=body())
        assert refused.status_code == 503
        assert "draining" in refused.json()["error"]["message"]
        text, answer = (await stream).text, await unary
    assert '"finish_reason":"stop"' in last_event(text)
    assert answer.status_code == 200
    assert stack.processes["gateway"].wait(10) == 0


async def test_what_outlives_the_drain_ends_with_an_error(start_stack: Any) -> None:
    stack = start_stack(drain_seconds=0.5)
    async with httpx.AsyncClient(timeout=30) as client:
        stream = asyncio.create_task(client.post(f"{stack.http}/generate_stream", json=body(**OF_A_STREAM)))
        unary = asyncio.create_task(client.post(f"{stack.http}/generate", json=body(**OF_A_STREAM)))
        await asyncio.to_thread(wait_until, lambda: len(stack.journal) == 2)
        begun = time.monotonic()
        stack.processes["gateway"].send_signal(signal.SIGTERM)
        text, answer = (await stream).text, await unary
    assert last_event(text).startswith("event: error")
    assert "unavailable" in last_event(text)
    assert answer.status_code == 503
    assert stack.processes["gateway"].wait(10) == 0
    assert time.monotonic() - begun < 8
    assert "Traceback" not in stack.log


def test_a_setting_that_the_gateway_does_not_have_is_an_error(start_stack: Any) -> None:
    """Jina would silently accept a misspelt `drain_second`."""
    with pytest.raises(AssertionError, match="no setting 'drain_second'"):
        start_stack(workers=0, drain_second=1)
