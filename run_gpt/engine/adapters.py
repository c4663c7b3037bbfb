"""LoRA adapters that an engine has loaded."""

from run_gpt.engine.runner import ModelRunner
from run_gpt.engine.runners.lora import Lora
from run_gpt.errors import InvalidRequest, ModelNotFound


class LoadedAdapters:
    """LoRA adapters of an engine's runner, by the names that requests give.

    Its owner holds a lock for every call but `names`. It calls `load`, `free` and `move` between two steps.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, Lora] = {}
        self._held: list[Lora] = []
        """Adapters that the runner holds: those with a name, and withdrawn ones that are not yet freed."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names that requests may give."""
        return tuple(self._by_name)

    def get(self, name: str) -> Lora:
        """Return the adapter of this name. Raises ModelNotFound if there is none."""
        if name not in self._by_name:
            there = f"there are {', '.join(self._by_name)}" if self._by_name else "none is loaded"
            raise ModelNotFound(f"adapter = {name!r} is not loaded: {there}", param="adapter")
        return self._by_name[name]

    def load(self, lora: Lora, runner: ModelRunner) -> None:
        """Add an adapter. Raises InvalidRequest if its name is taken or it does not fit the runner."""
        name = lora.name
        if name in self._by_name:
            raise InvalidRequest(f"name = {name!r}: an adapter of this name is loaded: unload it first", param="name")
        try:
            runner.add_adapter(lora)
        except ValueError as error:
            raise InvalidRequest(f"the adapter {name!r} does not fit: {error}", param="path") from error
        self._by_name[name] = lora
        self._held.append(lora)

    def withdraw(self, name: str) -> Lora:
        """Remove an adapter's name, and return the adapter. Running requests may still use it, until it is freed.

        Raises ModelNotFound if no adapter has this name.
        """
        lora = self.get(name)
        del self._by_name[name]
        return lora

    def free(self, lora: Lora, runner: ModelRunner) -> None:
        """Remove a withdrawn adapter that no request uses any more from the runner."""
        runner.remove_adapter(lora)
        self._held.remove(lora)

    def move(self, runner: ModelRunner) -> None:
        """Add all adapters to another runner, which replaces this one. Raises ValueError if one does not fit it."""
        for lora in self._held:
            runner.add_adapter(lora)
