"""Failures between the phases of a load: without these tests processes, threads or files could stay behind."""

from types import SimpleNamespace
from typing import Any

import pytest

from run_gpt.config import EngineConfig, ModelConfig
from run_gpt.errors import InvalidRequest, ModelLoadError
from run_gpt.local import launch, parallel
from run_gpt.models import LoadedModel


class Grammars:
    """Stand-in for GrammarCompiler."""

    def __init__(self, *_: Any):
        log.append("grammars begin")

    def close(self) -> None:
        log.append("grammars end")


class Engine:
    """Stand-in for an engine that takes no adapter."""

    def load_adapter(self, name: str, weights: Any) -> None:
        raise InvalidRequest(f"the adapter {name!r} does not fit")

    def shutdown(self) -> None:
        log.append("engine ends")


log: list[str] = []
PLACEMENT: Any = SimpleNamespace(config=ModelConfig(tensor_parallel=2), model_type="llama")


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    log.clear()
    monkeypatch.setattr(launch, "GrammarCompiler", Grammars)
    monkeypatch.setattr(launch, "end_ids_of", lambda model: ())
    monkeypatch.setattr(launch, "answer_decoder", lambda loaded: None)
    monkeypatch.setattr(launch, "place", lambda config, **_: PLACEMENT)
    monkeypatch.setattr(launch, "load_shares", lambda *_: (loaded(), None))


def loaded(**more: Any) -> LoadedModel:
    model: Any = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=9)))
    ends = (lambda: log.append("files end"), lambda: log.append("followers end"))
    return LoadedModel(model, None, "m", 9, "fp32", "cpu", (), adapters={"a": {}}, clean_ups=ends, **more)


def test_all_clean_ups_run_the_last_one_first() -> None:
    loaded().close()
    assert log == ["followers end", "files end"]


def test_a_clean_up_that_fails_does_not_stop_the_others() -> None:
    model: Any = None
    ends = (lambda: log.append("files end"), lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        LoadedModel(model, None, "m", 9, "fp32", "cpu", (), clean_ups=ends).close()
    assert log == ["files end"]


def test_an_interrupt_before_the_engine_runs_frees_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "start_engine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        launch.launch(ModelConfig(device="cpu"), EngineConfig(runner="generic"))
    assert log == ["grammars begin", "grammars end", "followers end", "files end"]


def test_an_adapter_that_does_not_fit_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "start_engine", lambda *_, **__: Engine())
    with pytest.raises(ModelLoadError, match="the adapter 'a' does not fit"):
        launch.launch(ModelConfig(device="cpu"), EngineConfig(runner="generic"))
    assert log[1:3] == ["engine ends", "grammars end"]


def test_an_interrupt_during_the_load_ends_the_followers(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    followers = SimpleNamespace(close=lambda: log.append("followers end"))
    monkeypatch.setattr(parallel, "Followers", lambda placement: followers)
    monkeypatch.setattr(parallel, "load_weights", interrupted)
    with pytest.raises(KeyboardInterrupt):
        parallel.load_shares(PLACEMENT, lambda *_: None, lambda *_: None)
    assert log == ["followers end"]


def test_the_clean_ups_of_a_model_in_shares_end_its_followers(monkeypatch: pytest.MonkeyPatch) -> None:
    followers = SimpleNamespace(close=lambda: log.append("its followers end"))
    monkeypatch.setattr(parallel, "Followers", lambda placement: followers)
    monkeypatch.setattr(parallel, "load_weights", lambda *_, **__: loaded())
    model, its = parallel.load_shares(PLACEMENT, lambda *_: None, lambda *_: None)
    model.close()
    assert its is followers  # type: ignore[comparison-overlap]
    assert log == ["its followers end", "followers end", "files end"]
