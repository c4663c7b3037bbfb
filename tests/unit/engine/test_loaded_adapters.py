"""Without these tests a runner that takes over could lack an adapter that requests still use, or fail when it goes."""

import pytest
from test_engine import ScriptedRunner

from run_gpt.engine.adapters import LoadedAdapters
from run_gpt.engine.runners.lora import Lora
from run_gpt.errors import InvalidRequest, ModelNotFound


class AdapterRunner(ScriptedRunner):
    """Runner that lists its adapters. It refuses those named "misfit"."""

    def __init__(self):
        super().__init__()
        self.loras = []

    def add_adapter(self, lora):
        if lora.name == "misfit":
            raise ValueError("no such layer")
        self.loras.append(lora)

    def remove_adapter(self, lora):
        self.loras.remove(lora)


def test_a_withdrawn_adapter_moves_with_the_others_until_it_is_freed():
    adapters, first, second = LoadedAdapters(), AdapterRunner(), AdapterRunner()
    kept, going = Lora("kept", {}), Lora("going", {})
    adapters.load(kept, first)
    adapters.load(going, first)
    assert adapters.withdraw("going") is going
    adapters.move(second)
    assert second.loras == [kept, going]
    adapters.free(going, second)
    assert second.loras == [kept]
    assert adapters.names == ("kept",)


def test_a_name_can_be_loaded_again_once_it_is_withdrawn():
    adapters, runner = LoadedAdapters(), AdapterRunner()
    old, new = Lora("a", {}), Lora("a", {})
    adapters.load(old, runner)
    with pytest.raises(InvalidRequest, match="unload it first"):
        adapters.load(new, runner)
    adapters.withdraw("a")
    adapters.load(new, runner)
    adapters.free(old, runner)
    assert (adapters.get("a"), runner.loras) == (new, [new])


def test_an_adapter_that_does_not_fit_gets_no_name():
    adapters = LoadedAdapters()
    with pytest.raises(InvalidRequest, match="does not fit: no such layer"):
        adapters.load(Lora("misfit", {}), AdapterRunner())
    with pytest.raises(ModelNotFound, match="none is loaded"):
        adapters.get("misfit")
