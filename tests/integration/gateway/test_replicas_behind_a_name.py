"""Replicas that come, go, drain and die behind one DNS name, as users notice it: real workers, a scripted resolver.

The workers share a port and have addresses of their own (127.0.0.2, ...), as pods behind a headless Service have.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from waiting import wait_until

from run_gpt.api.pieces import Piece
from run_gpt.api.schema import ChatRequest, GenerateRequest
from run_gpt.errors import RequestError, Unavailable
from run_gpt.gateway import members
from run_gpt.gateway.pool import ReplicaPool
from run_gpt.gateway.streams import Streams

MOST_REQUESTS = 3000
"""Most requests of one load; with SECONDS this bounds a test that hangs."""
SECONDS = 60.0


class Cluster:
    """Workers that share a port, and the addresses that their name resolves to."""

    def __init__(self, stack: Any):
        self.stack = stack
        self.executor = stack.flow["executors"][0]
        self.port: int = self.executor["port"][0]
        self.named: list[int] | Exception = []
        self.lookups = 0

    async def resolve(self, host: str, port: int) -> list[str]:
        assert (host, port) == ("engines", self.port)
        self.lookups += 1
        if isinstance(self.named, Exception):
            raise self.named
        return [self.address(i) for i in self.named]

    def address(self, i: int) -> str:
        return f"127.0.0.{i}:{self.port}"

    def start(self, *workers: int) -> None:
        for i in workers:
            self.executor["host"] = f"127.0.0.{i}"
            self.stack.start("executor", str(i))

    def kill(self, i: int) -> None:
        self.stack.kill(f"executor{i}")
        self.stack.processes.pop(f"executor{i}")

    def drain(self, i: int) -> None:
        """Make this worker refuse new requests from now on."""
        (self.stack.folder / f"state-w{i}").write_text("draining")

    def who_began(self) -> list[str]:
        return [who for what, _, who in self.stack.journal if what == "begin"]


@pytest.fixture
def cluster(bare_stack: Any) -> Cluster:
    return Cluster(bare_stack)


@asynccontextmanager
async def a_pool(cluster: Cluster) -> AsyncIterator[ReplicaPool]:
    pool = ReplicaPool([f"engines:{cluster.port}"], cluster.resolve)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


async def ready(cluster: Cluster, pool: ReplicaPool, *workers: int) -> None:
    addresses = {cluster.address(i) for i in workers}
    await until(lambda: {replica.address for replica in pool.ready} == addresses)


def script(**what: Any) -> GenerateRequest:
    return GenerateRequest(prompt=json.dumps(what))


async def read(pool: ReplicaPool, request: GenerateRequest, heard: list[str]) -> RequestError | None:
    """Return the error that ended the stream; append its texts to `heard` as they come."""
    streams = Streams(pool, [request], time.monotonic() + SECONDS, lambda: f"id{id(heard)}")
    try:
        while parts := await streams.read():
            heard += [piece.text for _, piece in parts if isinstance(piece, Piece)]
    except RequestError as error:
        return error
    finally:
        await streams.close()
    return None


class Load:
    """Load of eight users who request unary answers and streams in turn until the block ends."""

    def __init__(self, pool: ReplicaPool):
        self.pool = pool
        self.begun = 0
        self.ends: list[tuple[str, str, RequestError | None]] = []
        """Kind, texts and error of each request."""
        self.over = False

    async def __aenter__(self) -> "Load":
        self.users = [asyncio.create_task(self.user()) for _ in range(8)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.over = True
        async with asyncio.timeout(SECONDS):
            await asyncio.gather(*self.users)
        assert len(self.ends) == self.begun < MOST_REQUESTS

    async def more(self, count: int = 40) -> None:
        """Wait until so many further requests have ended."""
        enough = len(self.ends) + count
        await until(lambda: len(self.ends) >= enough)

    async def user(self) -> None:
        while not self.over and self.begun < MOST_REQUESTS:
            self.begun += 1
            kind, heard = ("unary", "stream")[self.begun % 2], list[str]()
            request, error = script(words=5, delay=0.01), None
            if kind == "stream":
                error = await read(self.pool, request, heard)
            else:
                try:
                    heard.append((await self.pool.answer(request, f"id{self.begun}", SECONDS)).text)  # type: ignore[attr-defined]
                except RequestError as refused:
                    error = refused
            self.ends.append((kind, "".join(heard), error))

    @property
    def errors(self) -> list[tuple[str, str, RequestError | None]]:
        return [end for end in self.ends if end[2] is not None]

    def check_texts(self) -> None:
        """Check that each answer is whole, and text before an error is its beginning: nothing twice, nothing lost."""
        whole = "0 1 2 3 4 "
        for kind, text, error in self.ends:
            assert whole.startswith(text) if error else text == whole, (kind, text, error)


async def test_a_rolling_update_loses_no_request(cluster: Cluster) -> None:
    """Pods of the new version come, those of the old one drain, leave the name and end: no user may notice."""
    cluster.start(2, 3)
    cluster.named = [2, 3]
    async with a_pool(cluster) as pool:
        await ready(cluster, pool, 2, 3)
        async with Load(pool) as load:
            for old, new in ((2, 4), (3, 5)):
                cluster.start(new)
                cluster.named = [*cluster.named, new]
                await until(lambda new=new: cluster.address(new) in {r.address for r in pool.ready})
                cluster.drain(old)
                await load.more()
                cluster.named = [i for i in cluster.named if i != old]
                await until(lambda old=old: cluster.address(old) not in {r.address for r in pool.replicas})
                await asyncio.to_thread(cluster.kill, old)
                await load.more()
            await ready(cluster, pool, 4, 5)
        assert load.errors == []
        load.check_texts()
        assert pool.watched
    ran = Counter(cluster.who_began())
    assert sum(ran.values()) == len(load.ends), "each request ran once"
    assert set(ran) == {"w2", "w3", "w4", "w5"}


async def test_a_draining_replica_loses_nothing_before_a_probe_reports_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "PROBE_SECONDS", 3600.0)
    cluster.start(2, 3)
    cluster.named = [2, 3]
    async with a_pool(cluster) as pool:
        while len(pool.ready) < 2:  # instead of the probes, which come once an hour here
            await asyncio.gather(*(replica.probe() for replica in pool.replicas))
            await asyncio.sleep(0.05)
        async with Load(pool) as load:
            await load.more()
            cluster.drain(2)
            await load.more()
        assert load.errors == []
        load.check_texts()
        assert {replica.address: replica.state for replica in pool.replicas} == {
            cluster.address(2): "draining",
            cluster.address(3): "ready",
        }


async def test_a_name_server_that_fails_or_says_nothing_stops_nobody(cluster: Cluster) -> None:
    cluster.start(2, 3)
    cluster.named = OSError("no name server")
    async with a_pool(cluster) as pool:
        with pytest.raises(
            Unavailable, match=f"no replica is known yet: waiting for engines:{cluster.port} to resolve"
        ):
            await pool.answer(script(), "id", 5)
        cluster.named = [2, 3]
        await ready(cluster, pool, 2, 3)
        async with Load(pool) as load:
            for nothing in (OSError("no name server"), [], OSError("no name server")):
                cluster.named, enough = nothing, cluster.lookups + 2
                await until(lambda enough=enough: cluster.lookups >= enough)
                assert len(pool.ready) == 2
                await load.more()
        assert load.errors == []
        load.check_texts()
        assert pool.watched


async def test_a_stream_on_a_replica_that_leaves_the_name_ends_whole(cluster: Cluster) -> None:
    """Scaling down must not cut answers in the middle."""
    cluster.start(2, 3)
    cluster.named = [2]
    async with a_pool(cluster) as pool:
        await ready(cluster, pool, 2)
        heard: list[str] = []
        stream = asyncio.create_task(read(pool, script(words=150, delay=0.02), heard))
        await until(lambda: heard)
        cluster.named = [3]
        await until(lambda: pool.replicas[0].leaving)
        await ready(cluster, pool, 3)
        for _ in range(4):
            assert (await pool.answer(script(), "id", SECONDS)).text == "Hello from w3"  # type: ignore[attr-defined]
        assert not stream.done()
        assert sorted(replica.describe()["state"] for replica in pool.replicas) == ["leaving", "ready"]
        assert await stream is None
        assert "".join(heard) == "".join(f"{i} " for i in range(150))
        await until(lambda: [replica.address for replica in pool.replicas] == [cluster.address(3)])
        assert pool.watched


async def test_a_replica_that_is_killed_in_mid_stream(cluster: Cluster) -> None:
    """Its streams end with one error; another replica answers the requests that had not begun; then it is removed."""
    cluster.start(2, 3)
    cluster.named = [2, 3]
    async with a_pool(cluster) as pool:
        await ready(cluster, pool, 2, 3)
        async with Load(pool) as load:
            await load.more()
            cluster.named = OSError("no name server")
            await asyncio.to_thread(cluster.kill, 2)
            await load.more()
            await ready(cluster, pool, 3)
            assert {r.address: r.state for r in pool.replicas} == {
                cluster.address(2): "lost",  # no lookup has reported it as removed
                cluster.address(3): "ready",
            }
            cluster.named = []
            await until(lambda: [r.address for r in pool.replicas] == [cluster.address(3)])
            cluster.start(4)
            cluster.named = [3, 4]  # it comes back with another address
            await ready(cluster, pool, 3, 4)
            await load.more()
        load.check_texts()
        assert all(kind == "stream" and text for kind, text, _ in load.errors), load.errors
        assert len(load.errors) <= 8, "of each user the one stream that ran there"
        assert all(isinstance(error, Unavailable) for *_, error in load.errors)


async def test_conversations_keep_their_replica_until_it_is_removed(cluster: Cluster) -> None:
    cluster.start(2, 3)
    cluster.named = [2, 3]
    async with a_pool(cluster) as pool:
        await ready(cluster, pool, 2, 3)

        async def turn(name: str, turns: int) -> str:
            """Return the name of the worker that answered the turn."""
            past = [{"role": "user", "content": f"{name} {i} ".ljust(600, ".")} for i in range(turns)]
            request = ChatRequest.parse({"messages": [*past, {"role": "user", "content": "{}"}]})
            return (await pool.answer(request, f"{name}{turns}", SECONDS)).text[-2:]  # type: ignore[attr-defined,no-any-return]

        homes = {name: await turn(name, 1) for name in "abcd"}
        assert sorted(homes.values()) == ["w2", "w2", "w3", "w3"]
        for turns in range(2, 6):
            for name in "cabd":
                assert await turn(name, turns) == homes[name]
        await asyncio.to_thread(cluster.kill, 2)
        assert {await turn(name, 6) for name in "abcd"} == {"w3"}


def test_a_gateway_finds_its_workers_by_a_real_name(start_stack: Any) -> None:
    """`localhost` is a name like any other: the ports open before it resolves, and its addresses then serve."""
    stack = start_stack(replicas=2, host="localhost")
    each = stack.ready()["replicas"]["each"]
    ports = stack.flow["executors"][0]["port"]
    assert sorted(replica["address"] for replica in each) == sorted(f"127.0.0.1:{port}" for port in ports)
    answers = [httpx.post(f"{stack.http}/generate", json={"prompt": "{}"}) for _ in range(4)]
    assert Counter(answer.json()["choices"][0]["text"] for answer in answers) == {
        "Hello from w0": 2,
        "Hello from w1": 2,
    }
    stack.kill("executor0")
    stack.processes.pop("executor0")
    wait_until(lambda: stack.ready()["replicas"]["ready"] == 1)
    assert httpx.post(f"{stack.http}/generate", json={"prompt": "{}"}).status_code == 200
