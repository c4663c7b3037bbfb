"""Faults of a server: without these tests requests could be lost silently, or the server could stay broken."""

import asyncio
import os
import signal

import httpx
import psutil
import pytest
from native_stream import read_stream
from tiny_model import write_tiny_model

LONG = {"prompt": "w5 w6", "min_new_tokens": 5000, "max_new_tokens": 5000, "temperature": 0}
SHORT = {"prompt": "w7 w8", "min_new_tokens": 20, "max_new_tokens": 20, "temperature": 0}
STORY = {"prompt": "Once upon a time"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return the folder of a model that is loaded at once: the content of its answers does not matter here."""
    return str(write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", context=8192))


def workers(server):
    return [p for p in server.processes() if "run_gpt.flows.pod" in p.cmdline() and "executor" in p.cmdline()]


@pytest.fixture(scope="module")
def two_replicas(start_server, tiny):
    """Yield a server of two replicas, which the last of its tests ends."""
    with start_server(tiny, "--replicas", "2", "--precision", "fp32") as server:
        yield server


async def test_a_killed_replica_loses_no_unary_request_and_no_stream_silently_and_comes_back(two_replicas):
    server = two_replicas
    async with httpx.AsyncClient(base_url=server.http_url, timeout=120) as client:
        await replicas_ready(client, 2)
        expected = (await client.post("/generate", json=SHORT)).json()["choices"][0]["text"]
        began = [asyncio.Event() for _ in range(4)]
        streams = [asyncio.create_task(read_stream(client, LONG, event)) for event in began]
        for event in began:
            await event.wait()
        unary = [asyncio.create_task(client.post("/generate", json=SHORT)) for _ in range(6)]
        victim = workers(server)[0]
        victim.send_signal(signal.SIGKILL)

        answers = await asyncio.gather(*unary)
        assert [a.status_code for a in answers] == [200] * 6
        assert [a.json()["choices"][0]["text"] for a in answers] == [expected] * 6
        ends = await asyncio.gather(*streams)
        # Two replicas, four streams, least busy first: two streams were on the victim.
        assert sorted((finished, error is not None) for _, finished, error in ends) == [
            (False, True),
            (False, True),
            (True, False),
            (True, False),
        ]
        whole = {text for text, finished, _ in ends if finished}
        assert len(whole) == 1
        assert all(next(iter(whole)).startswith(text) for text, _, _ in ends)

        await replicas_ready(client, 2)
        assert victim.pid not in [p.pid for p in workers(server)]


async def replicas_ready(client, count):
    """Wait until /ready counts so many replicas."""
    async with asyncio.timeout(120):
        while (await client.get("/ready")).json()["replicas"]["ready"] != count:
            await asyncio.sleep(0.1)


async def test_sigterm_in_mid_stream_lets_the_stream_finish_and_leaves_no_process(two_replicas):
    server, before = two_replicas, len(two_replicas.log.read_text())
    async with httpx.AsyncClient(base_url=server.http_url, timeout=120) as client:
        began = asyncio.Event()
        stream = asyncio.create_task(read_stream(client, LONG, began))
        await began.wait()
        os.kill(server.process.pid, signal.SIGTERM)
        _, finished, error = await stream
        assert (finished, error) == (True, None)
    await asyncio.to_thread(server.stop)  # checks the exit code and that no process is left
    assert "Traceback" not in server.log.read_text()[before:]


async def test_a_disconnected_client_frees_its_slot(server):
    async with httpx.AsyncClient(base_url=server.http_url, timeout=120) as client:
        began = asyncio.Event()
        stream = asyncio.create_task(
            read_stream(client, STORY | {"max_new_tokens": 2000, "min_new_tokens": 2000}, began)
        )
        await began.wait()
        stream.cancel()
        await in_flight(client, 0)
        unary = asyncio.create_task(
            client.post("/generate", json=STORY | {"max_new_tokens": 1500, "min_new_tokens": 1500})
        )
        await in_flight(client, 1)
        unary.cancel()
        await in_flight(client, 0)
        worker = workers(server)[0]
        await idle(worker)


async def in_flight(client, count):
    """Wait until /ready counts so many running requests."""
    async with asyncio.timeout(30):
        while (await client.get("/ready")).json()["in_flight"] != count:
            await asyncio.sleep(0.05)


async def idle(process: psutil.Process):
    """Wait until a busy process is idle: the model no longer runs for a client that has gone."""
    process.cpu_percent()
    async with asyncio.timeout(30):
        while True:
            await asyncio.sleep(0.5)  # the time over which CPU usage is measured
            if process.cpu_percent() < 20:
                return
