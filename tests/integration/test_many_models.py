"""Several models behind one port, as a user has them: each answers under its name, and none disturbs another."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from native_stream import read_stream
from tiny_model import write_tiny_model

from run_gpt import Client
from run_gpt.errors import ModelNotFound

LONG = {"prompt": "Once upon a time", "min_new_tokens": 4000, "max_new_tokens": 4000, "temperature": 0}
TINY_LONG = {"prompt": "w5 w6", "min_new_tokens": 8000, "max_new_tokens": 8000, "temperature": 0, "model": "tiny"}
WEIGHTS = 134_515_008 * 4
"""Bytes of the default model in fp32."""
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
    assert full - worker(pair, "smollm2").memory_info().rss > 0.9 * WEIGHTS
    # The next request loads it again and gets the same answer.
    again = httpx.post(f"{url}/generate", json={**SHORT, "model": "smollm2"}, timeout=120)
    assert again.json()["choices"] == answer.json()["choices"]


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


def rungpt(*arguments):
    command = [sys.executable, "-m", "run_gpt.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("url_name", ["grpc_url", "http_url"])
def test_a_model_is_loaded_with_its_progress_used_and_unloaded(pair, url_name):
    url = getattr(pair, url_name)
    heard = []
    with Client().get_model("smollm2", url) as model:
        model.unload(timeout=60)
        assert {card.id: card.state for card in Client().list_models(url)} == {"tiny": "loaded", "smollm2": "unloaded"}
        state = model.load(on_progress=lambda *step: heard.append(step), timeout=120)
        assert state.state == "loaded"
        assert state.memory > WEIGHTS
        assert heard  # a load from the page cache may end before its first size
        assert all(done <= total for _, done, total in heard if total)
        assert "Paris" in model.chat("What is the capital of France?", max_new_tokens=16, timeout=60).text
        assert states(pair.http_url)["smollm2"] == "loaded"
        assert model.unload(timeout=60).state == "unloaded"
    with Client().get_model("third", url) as model, pytest.raises(ModelNotFound, match="'tiny', 'smollm2'"):
        model.load()


def test_the_commands_and_top_report_the_same(pair):
    done = rungpt("models", "load", "smollm2", "--endpoint", pair.grpc_url)
    assert done.stdout.startswith("smollm2 is loaded, and takes ")
    assert "Loading smollm2" in done.stderr
    shown = rungpt("models", "served", "--endpoint", pair.http_url).stdout
    table = [re.split(r"\s{2,}", line.strip()) for line in shown.splitlines()]
    assert table[0] == ["name", "state", "memory", "context"]
    assert [row[:2] for row in table[1:]] == [["tiny", "loaded"], ["smollm2", "loaded"]]
    assert {row[3] for row in table[1:]} == {"8,192"}
    assert rungpt("models", "unload", "smollm2", "--endpoint", pair.grpc_url).stdout == "smollm2 is unloaded\n"
    text = rungpt("top", "--once", "--interval", "0.5", "--url", pair.http_url).stdout
    rows = [line.split() for line in text.splitlines()]
    assert rows[0][:2] == ["tiny,", "smollm2"], text
    assert "started again" not in text
    second = next(row for row in rows if row[:1] == ["smollm2"])
    assert second[1] == "unloaded"
    loads, failed, unloads = map(int, second[-3:])
    assert (loads == unloads, failed) == (True, 0)
    assert loads > 0
    assert sorted(row[1:3] for row in rows if row and row[0].startswith("127.0.0.1:")) == [
        ["ready", "tiny"],
        ["unloaded", "smollm2"],
    ]


async def test_two_models_stream_at_once_and_killing_one_leaves_the_others_streams_whole(pair):
    async with httpx.AsyncClient(base_url=pair.http_url, timeout=120) as client:
        alone, _, _ = await read_stream(client, TINY_LONG)
        big = {**SHORT, "model": "smollm2"}
        assert (await client.post("/generate", json=big)).status_code == 200
        assert states(pair.http_url) == {"tiny": "loaded", "smollm2": "loaded"}
        victim = worker(pair, "smollm2")
        streams = []
        for body in ({**LONG, "model": "smollm2"}, TINY_LONG):
            began = [asyncio.Event() for _ in range(2)]
            streams += [asyncio.create_task(read_stream(client, body, event)) for event in began]
            await asyncio.gather(*(event.wait() for event in began))
        victim.send_signal(signal.SIGKILL)
        assert not any(stream.done() for stream in streams)
        ends = await asyncio.gather(*streams)
        assert [(finished, error["code"]) for _, finished, error in ends[:2]] == [(False, "unavailable")] * 2
        assert ends[2:] == [(alone, True, None)] * 2
        # A worker that died is restarted; the next request loads its model again.
        await until(lambda: states(pair.http_url)["smollm2"] == "unloaded")
        again = await client.post("/generate", json=big)
        assert again.status_code == 200, again.text
        assert worker(pair, "smollm2").pid != victim.pid


@pytest.fixture(scope="module")
def cramped(start_server, tiny, tmp_path_factory):
    """Yield a server of two models, for one at a time; the second, `house`, has another name as well."""
    folder = tmp_path_factory.mktemp("cramped")
    write_tiny_model(folder / "other", context=8192)
    shared = {"memory": 1_000_000_000, "preload": False}
    names = {"served_model_name": ["house", "gpt-4o"]}
    models = [
        {"model_name": str(tiny), **shared, "unload_after": 0},
        {"model_name": str(folder / "other"), **shared, **names, "unload_after": 3},
    ]
    config = folder / "models.yml"
    config.write_text(json.dumps({"memory_budget": 1_500_000_000, "models": models}))
    with start_server("--config", str(config)) as server:
        yield server


async def test_models_take_turns_in_memory_and_leave_it_when_idle(cramped):
    url = cramped.http_url
    neither, first, second = (
        {"tiny": tiny, "house": house, "gpt-4o": house}
        for tiny, house in (("unloaded", "unloaded"), ("loaded", "unloaded"), ("unloaded", "loaded"))
    )
    assert states(url) == neither
    asked = []
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        for name in ("tiny", "house", "tiny"):
            answer = await client.post("/generate", json={**SHORT, "model": name})
            asked.append((answer.status_code, answer.json()["model"], states(url)))
        # All at once: each request waits for its turn, none is refused.
        answers = [client.post("/generate", json={**SHORT, "model": name}) for name in ("house", "tiny") * 3]
        assert [a.status_code for a in await asyncio.gather(*answers)] == [200] * 6
        assert (await client.post("/generate", json={**SHORT, "model": "house"})).status_code == 200
        await until(lambda: states(url)["house"] == "unloaded")
        metrics = (await client.get("/metrics")).text
    assert asked == [
        (200, "tiny", first),
        (200, "house", second),
        (200, "tiny", first),
    ]
    assert 'rungpt_model_loaded{model="house"} 0' in metrics
    assert 'rungpt_model_unloads_total{model="tiny"}' in metrics


def test_a_model_answers_under_each_served_name(cramped):
    """Without it clients that are set to another server's names get a 404."""
    assert list(states(cramped.http_url)) == ["tiny", "house", "gpt-4o"]
    for name in ("house", "gpt-4o"):
        body = {"model": name, "prompt": "w5 w6", "max_tokens": 2}
        answer = httpx.post(f"{cramped.http_url}/v1/completions", json=body, timeout=60)
        assert (answer.status_code, answer.json()["model"]) == (200, "house"), answer.text
        assert httpx.get(f"{cramped.http_url}/v1/models/{name}").json()["id"] == name
    body = {"model": "other", "prompt": "w5 w6", "max_tokens": 2}
    assert httpx.post(f"{cramped.http_url}/v1/completions", json=body, timeout=60).status_code == 404
