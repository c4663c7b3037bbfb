"""Several models behind one port, as a user has them: each answers under its name, and none disturbs another."""

import asyncio
import json
import signal
from pathlib import Path

import httpx
import psutil
import pytest
from native_stream import read_stream
from tiny_model import write_tiny_model

from run_gpt import Client

LONG = {"prompt": "Once upon a time", "min_new_tokens": 200, "max_new_tokens": 200, "temperature": 0}
TINY_LONG = {"prompt": "w5 w6", "min_new_tokens": 8000, "max_new_tokens": 8000, "temperature": 0, "model": "tiny"}
SHORT = {"prompt": "w5 w6", "max_new_tokens": 4, "min_new_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", context=8192)


@pytest.fixture(scope="module")
def pair(start_server, tiny):
    """Yield a server whose default model is the tiny one; it loads the other one on request."""
    with start_server(str(tiny), "smollm2", "--precision", "fp32") as server:
        yield server


def unload(server, name):
    answer = httpx.post(f"{server.http_url}/models/unload", json={"model": name}, timeout=60)
    assert (answer.status_code, answer.json()["state"]) == (200, "unloaded"), answer.text


def states(url):
    """Return the state of each model, by name, as `/v1/models` reports it."""
    return {model["id"]: model["state"] for model in httpx.get(f"{url}/v1/models").json()["data"]}


def worker(server, model):
    """Return the process that holds a model: the one whose Flow has it at its index."""
    each = httpx.get(f"{server.http_url}/ready").json()["replicas"]["each"]
    port = next(int(replica["address"].rpartition(":")[2]) for replica in each if replica["model"] == model)
    return next(process for process in server.processes() if _listens(process, port))


def _listens(process, port):
    connections = process.net_connections("tcp")
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections)


async def until(condition, seconds=60):
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)


def events(response):
    """Return the JSON of each server-sent event."""
    return [json.loads(line.removeprefix("data:")) for line in response.text.splitlines() if line.startswith("data:")]


async def test_two_models_stream_at_once_and_killing_one_leaves_the_others_streams_whole(start_server, tiny):
    with start_server("smollm2", str(tiny), "--precision", "fp32") as server:
        assert states(server.http_url) == {"smollm2": "loaded", "tiny": "unloaded"}
        async with httpx.AsyncClient(base_url=server.http_url, timeout=120) as client:
            alone, _, _ = await read_stream(client, LONG)
            assert (await client.post("/generate", json={**SHORT, "model": "tiny"})).status_code == 200
            assert states(server.http_url) == {"smollm2": "loaded", "tiny": "loaded"}
            victim = worker(server, "tiny")
            began = [asyncio.Event() for _ in range(4)]
            bodies = [LONG, {**LONG, "model": "smollm2"}, TINY_LONG, TINY_LONG]
            streams = [asyncio.create_task(read_stream(client, *each)) for each in zip(bodies, began, strict=True)]
            await asyncio.gather(*(event.wait() for event in began))
            victim.send_signal(signal.SIGKILL)
            assert not any(stream.done() for stream in streams)
            ends = await asyncio.gather(*streams)
            assert [(text, finished, error) for text, finished, error in ends[:2]] == [(alone, True, None)] * 2
            assert [(finished, error["code"]) for _, finished, error in ends[2:]] == [(False, "unavailable")] * 2
            # A worker that died is restarted; the next request loads its model again.
            await until(lambda: states(server.http_url)["tiny"] == "unloaded")
            again = await client.post("/generate", json={**SHORT, "model": "tiny"})
            assert again.status_code == 200, again.text
            assert worker(server, "tiny").pid != victim.pid


async def test_a_load_reports_its_progress_and_disturbs_no_stream(pair):
    await asyncio.to_thread(unload, pair, "smollm2")
    async with httpx.AsyncClient(base_url=pair.http_url, timeout=120) as client:
        began = asyncio.Event()
        stream = asyncio.create_task(read_stream(client, TINY_LONG, began))
        await began.wait()
        told = await client.post("/models/load", json={"model": "smollm2"})
        assert told.headers["content-type"].startswith("text/event-stream")
        *loading, last = events(told)
        assert {event["state"] for event in loading} == {"loading"}
        steps = [event["done"] for event in loading if event["total"]]
        assert steps, loading
        assert steps == sorted(steps)
        assert (last["object"], last["model"], last["state"]) == ("model.state", "smollm2", "loaded")
        assert (await stream)[1:] == (True, None)
        again = await client.post("/models/load", json={"model": "smollm2"})
        assert [event["state"] for event in events(again)] == ["loaded"]
        with Client().get_model("smollm2", endpoint=pair.grpc_url) as model:
            assert model.generate("Water boils at", max_new_tokens=2).model == "smollm2"
        for body in ({"model": "nobody"}, {}):
            refused = await client.post("/models/load", json=body)
            assert refused.status_code == (404 if body else 400), refused.text


def test_unloading_gives_the_memory_back(pair):
    url = pair.http_url
    httpx.post(f"{url}/models/load", json={"model": "smollm2"}, timeout=120).raise_for_status()
    full = worker(pair, "smollm2").memory_info().rss
    answer = httpx.post(f"{url}/generate", json={**SHORT, "model": "smollm2"}, timeout=120)
    unload(pair, "smollm2")
    weights = 134_515_008 * 4
    assert full - worker(pair, "smollm2").memory_info().rss > 0.9 * weights
    # The next request loads it again and gets the same answer.
    again = httpx.post(f"{url}/generate", json={**SHORT, "model": "smollm2"}, timeout=120)
    assert again.json()["choices"] == answer.json()["choices"]


async def test_models_take_turns_in_memory_and_leave_it_when_idle(start_server, tiny, tmp_path):
    config = tmp_path / "models.yml"
    config.write_text(
        json.dumps(
            {
                "memory_budget": 1_500_000_000,
                "models": [
                    {"model_name": "smollm2", "memory": 1_000_000_000, "preload": False, "unload_after": 0},
                    {"model_name": str(tiny), "memory": 1_000_000_000, "preload": False, "unload_after": 3},
                ],
            }
        )
    )
    with start_server("--config", str(config)) as server:
        url = server.http_url
        assert states(url) == {"smollm2": "unloaded", "tiny": "unloaded"}
        asked = []
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            for name in ("smollm2", "tiny", "smollm2"):
                answer = await client.post("/generate", json={**SHORT, "model": name})
                asked.append((answer.status_code, answer.json()["model"], sorted(states(url).items())))
            # All at once: each request waits for its turn, none is refused.
            answers = [client.post("/generate", json={**SHORT, "model": name}) for name in ("tiny", "smollm2") * 3]
            assert [a.status_code for a in await asyncio.gather(*answers)] == [200] * 6
            assert (await client.post("/generate", json={**SHORT, "model": "tiny"})).status_code == 200
            await until(lambda: states(url)["tiny"] == "unloaded")
            metrics = (await client.get("/metrics")).text
        assert asked == [
            (200, "smollm2", [("smollm2", "loaded"), ("tiny", "unloaded")]),
            (200, "tiny", [("smollm2", "unloaded"), ("tiny", "loaded")]),
            (200, "smollm2", [("smollm2", "loaded"), ("tiny", "unloaded")]),
        ]
        assert 'rungpt_model_loaded{model="tiny"} 0' in metrics
        assert 'rungpt_model_unloads_total{model="smollm2"}' in metrics


def test_http_and_grpc_list_all_models(pair):
    url = pair.http_url
    missing = httpx.post(f"{url}/generate", json={**SHORT, "model": "other"})
    assert missing.status_code == 404
    assert "'tiny', 'smollm2'" in missing.json()["error"]["message"]
    assert httpx.get(f"{url}/v1/models/tiny").json()["state"] == "loaded"
    assert httpx.post(f"{url}/generate", json=SHORT, timeout=60).json()["model"] == "tiny"
    body = {"model": "smollm2", "prompt": "Water boils at", "max_tokens": 3}
    completion = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
    assert (completion.status_code, completion.json()["model"]) == (200, "smollm2"), completion.text


def test_a_model_answers_under_each_served_name(start_server, tiny):
    """Without it clients that are set to another server's names get a 404."""
    names = ["--served-model-name", "house", "--served-model-name", "gpt-4o"]
    with start_server(str(tiny), "--precision", "fp32", *names) as server:
        assert list(states(server.http_url)) == ["house", "gpt-4o"]
        for name in ("house", "gpt-4o"):
            body = {"model": name, "prompt": "w5 w6", "max_tokens": 2}
            answer = httpx.post(f"{server.http_url}/v1/completions", json=body, timeout=60)
            assert (answer.status_code, answer.json()["model"]) == (200, "house"), answer.text
            assert httpx.get(f"{server.http_url}/v1/models/{name}").json()["id"] == name
        body = {"model": "tiny", "prompt": "w5 w6", "max_tokens": 2}
        assert httpx.post(f"{server.http_url}/v1/completions", json=body, timeout=60).status_code == 404
