"""The models in memory, with scripted replicas: loads, unloads and waits; no request is lost."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from run_gpt.api.answers import Status
from run_gpt.api.embeddings import EmbedRequest
from run_gpt.api.models import LoadModelRequest
from run_gpt.api.openai.chat import ChatCompletionRequest
from run_gpt.api.openai.completions import CompletionRequest
from run_gpt.api.openai.embeddings import EmbeddingRequest
from run_gpt.api.openai.responses import ResponseRequest
from run_gpt.api.schema import GenerateRequest
from run_gpt.api.tokens import TokenizeRequest
from run_gpt.api.translated import TranslatedRequest
from run_gpt.errors import DeadlineExceeded, InternalError, InvalidRequest, ModelNotFound, Unavailable
from run_gpt.gateway import models as module
from run_gpt.gateway.hosted import Hosted
from run_gpt.gateway.metrics import GatewayMetrics
from run_gpt.gateway.models import Models
from run_gpt.gateway.pool import ReplicaPool


class ScriptedReplica:
    """A replica whose loads end when the test says so, or at once."""

    restarts = 0

    def __init__(self, model: str, memory: int, log: list[str], unload_after: float | None = None):
        self.model, self.log, self.leaving, self.address = model, log, False, f"{model}:1"
        self.status = Status(
            state="unloaded", model=model, running=0, waiting=0, memory=memory, unload_after=unload_after
        )
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.fails: str | None = None

    @property
    def state(self) -> str:
        return self.status.state

    @property
    def loads(self) -> bool:
        return self.state in ("unloaded", "loading")

    @property
    def takes_requests(self) -> bool:
        return self.state == "ready"

    def says(self, **fields: Any) -> None:
        self.status = self.status.model_copy(update=fields)

    async def load(self) -> None:
        self.says(state="loading", step="Loading", done=1, total=2)
        await self.may_end.wait()
        if self.fails:
            self.says(state="unloaded", why=self.fails)
        else:
            self.says(state="ready")
            self.log.append(f"+{self.model}")

    async def unload(self) -> None:
        self.says(state="unloaded")
        self.log.append(f"-{self.model}")


def server(budget: int | None, log: list[str], **memory: int) -> tuple[Models, dict[str, ScriptedReplica]]:
    """Make models of one replica each, which take so much memory."""
    replicas = {name: ScriptedReplica(name, size, log) for name, size in memory.items()}
    pools = []
    for replica in replicas.values():
        pools.append(ReplicaPool([]))
        pools[-1].members.replicas = {"1": replica}  # type: ignore[dict-item]
    return Models(pools, budget), replicas


async def use(models: Models, name: str, until: asyncio.Event | None = None) -> None:
    """Run a request: it holds its model until `until` is set."""
    async with models.held(models.named(name), 5):
        if until is not None:
            await until.wait()


async def settled(condition: Callable[[], bool]) -> None:
    """Wait for the condition; scripted steps need some turns of the loop."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def test_a_model_is_loaded_once_for_all_who_wait_for_it() -> None:
    models, replicas = server(None, log := [], a=1)
    replicas["a"].may_end.clear()
    requests = [asyncio.create_task(use(models, "a")) for _ in range(5)]
    await settled(lambda: replicas["a"].state == "loading")
    assert models.named("a").state == "loading"
    replicas["a"].may_end.set()
    await asyncio.gather(*requests)
    assert (log, models.named("a").state, models.named("a").loads) == (["+a"], "loaded", 1)


async def test_the_model_unused_for_longest_makes_room() -> None:
    models, _ = server(2, log := [], a=1, b=1, c=1)
    for name in ("a", "b", "a", "c", "a"):
        await use(models, name)
    assert log == ["+a", "+b", "-b", "+c"]


async def test_a_model_in_use_ends_its_requests_and_gets_no_new_ones_before_the_others_had_a_turn() -> None:
    models, replicas = server(1, log := [], a=1, b=1)
    end = asyncio.Event()
    running = asyncio.create_task(use(models, "a", end))
    await settled(lambda: replicas["a"].state == "ready")
    other = asyncio.create_task(use(models, "b"))
    await settled(lambda: models.named("a").leaving is not None)
    late = asyncio.create_task(use(models, "a"))
    await asyncio.sleep(0.05)
    assert log == ["+a"]
    assert not any(task.done() for task in (running, other, late))
    end.set()
    await asyncio.gather(running, other, late)
    assert log == ["+a", "-a", "+b", "-b", "+a"]


async def test_who_is_gone_before_there_is_room_takes_nothing_from_the_others() -> None:
    models, replicas = server(1, log := [], a=1, b=1)
    end = asyncio.Event()
    running = asyncio.create_task(use(models, "a", end))
    await settled(lambda: replicas["a"].state == "ready")
    gone = asyncio.create_task(use(models, "b"))
    await settled(lambda: models.named("a").leaving is not None)
    gone.cancel()
    await settled(lambda: models.named("b").loading is None)
    assert models.named("a").leaving is None
    await use(models, "a")  # at once, beside the running one
    end.set()
    await running
    assert log == ["+a"]


async def test_a_model_that_never_fits_says_both_numbers() -> None:
    models, _ = server(2_000_000_000, [], a=3_000_000_000)
    with pytest.raises(Unavailable, match=r"takes 3.00 GB, and all models together may take 2.00 GB"):
        await use(models, "a")
    assert models.named("a").loading is None


async def test_a_load_that_fails_says_why_and_is_tried_again() -> None:
    models, replicas = server(None, log := [], a=1)
    replicas["a"].fails = "its weights are damaged"
    with pytest.raises(Unavailable, match="the model a cannot be loaded: its weights are damaged"):
        await use(models, "a")
    assert (models.named("a").state, models.named("a").failed_loads) == ("failed", 1)
    replicas["a"].fails = None
    replicas["a"].says(why=None)
    await use(models, "a")
    assert log == ["+a"]


async def test_a_request_waits_no_longer_than_it_may_and_the_load_goes_on() -> None:
    models, replicas = server(None, log := [], a=1)
    replicas["a"].may_end.clear()
    with pytest.raises(DeadlineExceeded, match=r"the model a was not in memory after 0.01 s"):
        async with models.held(models.named("a"), 0.01):
            raise AssertionError
    replicas["a"].may_end.set()
    await settled(lambda: log == ["+a"])


async def test_a_load_is_told_event_by_event() -> None:
    models, replicas = server(None, [], a=1)
    replicas["a"].may_end.clear()
    states = []
    async for state in models.load(models.named("a"), 5):
        states.append((state.state, state.step, state.done, state.total))
        if state.done == 1:
            replicas["a"].may_end.set()
    assert states[-2:] == [("loading", "Loading", 1, 2), ("loaded", None, None, None)]
    assert {state for state, *_ in states[:-1]} == {"loading"}
    assert [state.state async for state in models.load(models.named("a"), 5)] == ["loaded"]


async def test_a_model_that_is_being_loaded_cannot_be_unloaded() -> None:
    models, replicas = server(None, [], a=1)
    replicas["a"].may_end.clear()
    gone = asyncio.create_task(use(models, "a"))
    await settled(lambda: replicas["a"].state == "loading")
    gone.cancel()
    await settled(gone.done)
    with pytest.raises(Unavailable, match="is being loaded"):
        await models.unload(models.named("a"), 5)
    replicas["a"].may_end.set()
    await use(models, "a")
    assert (await models.unload(models.named("a"), 5)).state == "unloaded"


async def test_a_model_in_use_cannot_be_unloaded_by_request() -> None:
    models, replicas = server(None, log := [], a=1)
    end = asyncio.Event()
    running = asyncio.create_task(use(models, "a", end))
    await settled(lambda: replicas["a"].state == "ready")
    with pytest.raises(Unavailable, match="in use, by 1 requests"):
        await models.unload(models.named("a"), 5)
    end.set()
    await running
    assert (await models.unload(models.named("a"), 5)).state == "unloaded"
    assert log == ["+a", "-a"]


async def test_what_had_nothing_to_do_is_unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.001)
    models, replicas = server(None, log := [], a=1, b=1)
    replicas["a"].says(unload_after=0.05)
    watch = asyncio.create_task(models._unload_idle())
    end = asyncio.Event()
    running = asyncio.create_task(use(models, "a", end))
    await use(models, "b")
    await asyncio.sleep(0.1)
    assert sorted(log) == ["+a", "+b"]  # it is in use
    end.set()
    await running
    await settled_in_time(lambda: log[2:] == ["-a"])
    watch.cancel()


async def settled_in_time(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_replica_that_does_not_unload_is_not_asked_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle models are still watched after any failure of it: otherwise the server would never be ready again."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    models, replicas = server(1, log := [], a=1, b=1)
    await use(models, "a")
    asked: list[int] = []

    async def fail() -> None:
        asked.append(1)
        raise InternalError("it cannot")

    replicas["a"].unload = fail  # type: ignore[method-assign]
    waiting = asyncio.create_task(use(models, "b"))
    await asyncio.sleep(0.2)
    assert 1 <= len(asked) <= 5
    assert (log, models.named("a").unloads) == (["+a"], 0)
    with pytest.raises(DeadlineExceeded):  # b waits for memory
        await models.unload(models.named("a"), 0.01)
    waiting.cancel()
    await settled_in_time(lambda: models.named("b").loading is None)
    with pytest.raises(Unavailable, match="still in memory"):
        await models.unload(models.named("a"), 5)


async def test_what_is_not_in_memory_is_not_counted_as_unloaded() -> None:
    models, _ = server(None, [], a=1)
    assert (await models.unload(models.named("a"), 5)).state == "unloaded"
    assert models.named("a").unloads == 0


async def test_who_comes_after_the_end_loads_nothing() -> None:
    models, _ = server(None, log := [], a=1)
    models.stop("the server stops")
    with pytest.raises(Unavailable, match="the server stops"):
        await use(models, "a")
    assert log == []


async def test_the_end_of_the_server_ends_who_waits_with_an_error() -> None:
    models, replicas = server(None, [], a=1)
    replicas["a"].may_end.clear()
    waiting = asyncio.create_task(use(models, "a"))
    await settled(lambda: replicas["a"].state == "loading")
    models.stop("the server stops")
    with pytest.raises(Unavailable, match="the server stops"):
        await waiting


async def test_requests_find_their_model_by_name_and_the_first_one_without() -> None:
    models, _ = server(None, [], a=1, b=1)
    assert [hosted.name for hosted in (models.named(None), models.named("b"))] == ["a", "b"]
    with pytest.raises(ModelNotFound, match="model 'c' is not served here: this server has 'a', 'b'"):
        models.named("c")
    unknown = ReplicaPool(["127.0.0.1:1"])
    models.all.append(Hosted(unknown))
    with pytest.raises(Unavailable, match="loading"):
        models.named("c")  # it may be the model whose name is not known yet


async def test_metrics_tell_of_each_model_from_when_its_name_is_known() -> None:
    """Two models without a name would be one series twice, which Prometheus refuses."""
    models, _ = server(1, [], a=1, b=1)
    models.all += [Hosted(ReplicaPool([])), Hosted(ReplicaPool([]))]
    await use(models, "a")
    await use(models, "b")
    families = GatewayMetrics(models, lambda: 0).families()
    told = [sample for family in families for sample in family.samples if sample.name.startswith("rungpt_model_")]
    values = {(sample.name.removeprefix("rungpt_model_"), sample.labels["model"]): sample.value for sample in told}
    assert len(told) == len(values)
    assert values == {
        **{("loaded", "a"): 0, ("loads_total", "a"): 1, ("load_failures_total", "a"): 0, ("unloads_total", "a"): 1},
        **{("loaded", "b"): 1, ("loads_total", "b"): 1, ("load_failures_total", "b"): 0, ("unloads_total", "b"): 0},
    }


def test_every_served_name_finds_the_model_and_is_listed() -> None:
    """Without it a client that asks for the second `--served-model-name` gets a 404."""
    models, replicas = server(None, [], house=1, other=1)
    replicas["house"].says(aliases=["gpt-4o"])
    assert models.named("gpt-4o") is models.named("house") is models.all[0]
    assert [models.named(name).card(name).id for name in models.all[0].names] == ["house", "gpt-4o"]
    with pytest.raises(ModelNotFound, match="this server has 'house', 'gpt-4o', 'other'"):
        models.named("gpt-3")


async def test_an_adapter_is_a_model_with_a_parent() -> None:
    """vLLM's clients choose an adapter by `model`."""
    models, replicas = server(None, [], a=1, b=1)
    replicas["a"].says(adapters=["one", "b", "gone"], aliases=["also"])
    replicas["b"].says(adapters=["one", "two"])
    models.all[0].pool.adapters._paths = {"gone": None, "new": "/x"}
    assert [(name, hosted.name) for name, hosted in models.adapters.items()] == [
        ("one", "a"),
        ("new", "a"),
        ("two", "b"),
    ]
    assert [
        (card.id, card.parent, card.root) for card in (models.shown(name).card(name) for name in ("also", "two"))
    ] == [
        ("also", None, "a"),
        ("two", "b", "b"),
    ]
    for name in ("gone", "three"):
        with pytest.raises(ModelNotFound):
            models.shown(name)
    with pytest.raises(ModelNotFound):
        models.named("one")


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (GenerateRequest, {"prompt": "x"}),
        (EmbedRequest, {"texts": ["x"]}),
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": "x"}]}),
        (CompletionRequest, {"prompt": ["x", "y"]}),
        (ResponseRequest, {"input": "x"}),
        (EmbeddingRequest, {"input": "x"}),
        (TokenizeRequest, {"prompt": "x"}),
        (LoadModelRequest, {}),
    ],
)
def test_a_request_to_an_adapter_is_one_to_its_model(kind: Any, fields: dict[str, Any]) -> None:
    models, replicas = server(None, [], a=1, b=1)
    replicas["b"].says(adapters=["two"])
    request = kind.parse({**fields, "model": "two"})
    if isinstance(request, TranslatedRequest):
        request.natives()  # they are made where the body is read
    found: Any = models.resolved(request)
    assert found.model == "b"
    for one in [*(found.natives() if isinstance(found, TranslatedRequest) else ()), found]:
        assert one.model == "b"
        assert getattr(one, "adapter", "two") == "two"
    if "adapter" in kind.model_fields:
        with pytest.raises(InvalidRequest, match="adapter = 'other'"):
            models.resolved(kind.parse({**fields, "model": "two", "adapter": "other"}))
    untouched = kind.parse({**fields, "model": "a"})
    assert models.resolved(untouched) is untouched
