"""An executor's model while it serves: shared loads with progress, recovery from a failed load, and limited memory."""

import gc
import threading
import weakref
from typing import Any

import pytest

import run_gpt.local.create
from run_gpt.api.answers import Status
from run_gpt.config import EngineConfig, HostConfig, ModelConfig
from run_gpt.errors import ModelLoadError, Unavailable
from run_gpt.executors.causal_lm import host as module
from run_gpt.executors.causal_lm.footprint import Footprint
from run_gpt.executors.causal_lm.host import Host

KNOWN = Footprint(weights=1000, token=10, context=20)


class ScriptedModel:
    """Stand-in for the result of `load_model`, without a model."""

    notes = ("a note",)
    kernels = "prebuilt for avx2"
    heartbeat = None

    def __init__(self) -> None:
        self.ended = threading.Event()

    def status(self) -> Status:
        return Status(state="ready", model="m", running=0, waiting=0, context_length=20)

    def metrics(self) -> str:
        return "some"

    def shutdown(self) -> None:
        self.ended.set()


class Loader:
    """Stand-in for `load_model`: it reports one step, then waits until the test lets it end."""

    def __init__(self) -> None:
        self.may_end, self.fails, self.loaded = threading.Event(), [], []  # type: ignore[var-annotated]
        self.configs: list[EngineConfig] = []

    def __call__(self, model_config: Any, engine_config: EngineConfig, *, on_progress: Any, on_dead: Any) -> Any:
        self.configs.append(engine_config)
        on_progress("Loading m", 1, 2)
        assert self.may_end.wait(10)
        if self.fails:
            raise self.fails.pop()
        model = ScriptedModel()
        self.loaded.append(weakref.ref(model))
        return model


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    loader = Loader()
    monkeypatch.setattr(run_gpt.local.create, "load_model", loader)
    monkeypatch.setattr(module.Footprint, "of", lambda *_: KNOWN)
    return loader


def host(preload: bool = False, **config: Any) -> Host:
    return Host(
        ModelConfig(model_name="m"), EngineConfig(), HostConfig(preload=preload, **config), on_dead=lambda: None
    )


async def test_a_load_is_told_and_whoever_asks_meanwhile_hears_of_the_same(loader: Loader) -> None:
    hosted = host(unload_after=5)
    assert (hosted.status().state, hosted.status().context_length) == ("unloaded", 20)
    first, second = hosted.load(), hosted.load()
    seen = []
    async for status in first:
        seen.append((status.state, status.done, status.total))
        if status.done == 1:
            assert (await anext(second)).state == "loading"  # type: ignore[call-overload]
            loader.may_end.set()
    assert seen[-2:] == [("loading", 1, 2), ("ready", None, None)]
    assert [status.state async for status in second][-1] == "ready"
    assert len(loader.loaded) == 1
    assert (hosted.metrics(), hosted.status().unload_after) == ("some", 5)


async def test_a_load_that_fails_says_why_until_the_next(loader: Loader) -> None:
    loader.may_end.set()
    loader.fails = [ModelLoadError("its weights are damaged")]
    hosted = host()
    last = [status async for status in hosted.load()][-1]
    assert (last.state, last.why) == ("unloaded", "its weights are damaged")
    with pytest.raises(Unavailable, match="m is not in memory"):
        _ = hosted.model
    last = [status async for status in hosted.load()][-1]
    assert (last.state, last.why) == ("ready", None)


async def test_a_surprise_in_a_load_is_no_silence(loader: Loader) -> None:
    loader.may_end.set()
    loader.fails = [ZeroDivisionError("division by zero")]
    last = [status async for status in host().load()][-1]
    assert (last.state, last.why) == ("unloaded", "ZeroDivisionError: division by zero")


async def test_nothing_of_an_unloaded_model_stays(loader: Loader) -> None:
    loader.may_end.set()
    hosted = host()
    async for _ in hosted.load():
        pass
    model = hosted.model
    await hosted.unload()
    assert model.ended.is_set()  # type: ignore[attr-defined]
    del model
    gc.collect()
    assert loader.loaded[0]() is None
    assert (hosted.status().state, hosted.metrics()) == ("unloaded", "")
    await hosted.unload()  # no error: there is nothing to do


def test_a_model_is_loaded_at_once_by_default(loader: Loader) -> None:
    loader.may_end.set()
    assert host(preload=True).status().state == "ready"
    loader.fails = [ModelLoadError("no")]
    with pytest.raises(ModelLoadError):
        host(preload=True)


def test_memory_bounds_the_cache_and_is_never_less_than_what_is_needed(loader: Loader) -> None:
    engine = EngineConfig()
    assert KNOWN.within(engine, 2000).max_cache_tokens == 100
    assert KNOWN.within(engine, 1010).max_cache_tokens == 20  # one context
    assert KNOWN.within(engine, None).max_cache_tokens is None
    assert KNOWN.within(EngineConfig(max_cache_tokens=7), 2000).max_cache_tokens == 7  # as the user says
    assert Footprint().within(engine, 2000).max_cache_tokens is None
    assert (KNOWN.bytes_of(engine, 2000), KNOWN.bytes_of(engine, 1010), KNOWN.bytes_of(engine, None)) == (
        2000,
        1200,
        1200,
    )
    assert (Footprint().bytes_of(engine, 2000), Footprint().bytes_of(engine, None)) == (2000, None)
    loader.may_end.set()
    assert host(preload=True, memory=2000).status().memory == 2000
    assert loader.configs[-1].max_cache_tokens == 100
