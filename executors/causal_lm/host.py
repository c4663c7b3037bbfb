"""`Host`: the model of one executor, which may be loaded and unloaded while the executor serves."""

import asyncio
import ctypes
import gc
import logging
import sys
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from run_gpt.api.answers import Status
from run_gpt.config import EngineConfig, HostConfig, ModelConfig
from run_gpt.errors import RunGPTError, Unavailable
from run_gpt.executors.causal_lm.footprint import Footprint
from run_gpt.executors.causal_lm.watch import EngineWatch
from run_gpt.models import served_names
from run_gpt.models.files import startup_adapters
from run_gpt.process.imports import large_imports

if TYPE_CHECKING:
    from run_gpt.engine.heartbeat import Heartbeat
    from run_gpt.local.model import Model

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.1
"""Time between two reports of a load's progress."""


class Host:
    """The model that these configurations name. Use it on one event loop.

    `on_dead` is called when its engine dies, `on_hang` with the reason when it hangs, both in other threads.

    Loads it at once if `config.preload`; else it only ensures that the files are present. Raises SetupError or
    ModelNotFound.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        engine_config: EngineConfig,
        config: HostConfig,
        on_dead: Callable[[], None],
        on_hang: Callable[[str], None] = lambda reason: None,
    ):
        self.name, *self._aliases = served_names(model_config)
        self._adapters = list(startup_adapters(model_config))
        measured = not config.preload or config.memory is not None
        self._footprint = Footprint.of(model_config, engine_config) if measured else Footprint()
        self._model_config, self._config = model_config, config
        self._engine_config = self._footprint.within(engine_config, config.memory)
        self._on_dead = on_dead
        self._loading: asyncio.Task[None] | None = None
        self._progress: tuple[str, int, int | None] = ("", 0, None)
        self._why: str | None = None
        # torch.compile waits for other processes.
        self._watch = EngineWatch(self._heartbeat, config.step_timeout, on_hang, may_sleep=engine_config.compile)
        self._model: Model | None = None
        if config.preload:
            self._model = self._load()
        self._watch.start()

    def _heartbeat(self) -> "Heartbeat | None":
        return None if self._model is None else self._model.heartbeat

    @property
    def model(self) -> "Model":
        """The loaded model. Raises Unavailable."""
        if self._model is None:
            raise Unavailable(f"the model {self.name} is not in memory: try again in a moment")
        return self._model

    async def load(self) -> AsyncIterator[Status]:
        """Load it, and yield the progress until the end: the last status is `ready`, or `unloaded` with the reason.

        A call during a load follows the same load, which goes on even if all callers have gone.
        """
        if self._model is None and self._loading is None:
            self._progress, self._why = (f"Loading {self.name}", 0, None), None
            self._loading = asyncio.create_task(self._load_in_thread())
        reported = None
        while (loading := self._loading) is not None:
            if (status := self.status()) != reported:
                yield status
            reported = status
            await asyncio.wait((loading,), timeout=PROGRESS_SECONDS)
        yield self.status()

    async def unload(self) -> None:
        """Free its memory. Call it when no request runs."""
        if self._model is not None:
            held, self._model = [self._model], None
            await asyncio.to_thread(_end, held)

    def close(self) -> None:
        """End the engine; requests that still run end with Unavailable. Blocks."""
        self._watch.close()
        if self._model is not None:
            self._model.shutdown()

    def status(self) -> Status:
        """Return the state of the model, and the memory that it takes."""
        status = self._status_without() if self._model is None else self._model.status()
        about = {
            "state": "stuck" if self._watch.is_stuck and status.state == "ready" else status.state,
            "memory": self._footprint.bytes_of(self._engine_config, self._config.memory),
            "unload_after": self._config.unload_after,
            "aliases": self._aliases,
        }
        return status.model_copy(update=about)

    def metrics(self) -> str:
        """Return the engine's metrics since the load, in Prometheus' text form; empty while it is not loaded."""
        return "" if self._model is None else self._model.metrics()

    def _status_without(self) -> Status:
        step, done, total = self._progress if self._loading else (None, None, None)
        return Status(
            state="loading" if self._loading else "unloaded",
            model=self.name,
            running=0,
            waiting=0,
            context_length=self._footprint.context or None,
            adapters=self._adapters,
            step=step,
            done=done,
            total=total,
            why=self._why,
        )

    async def _load_in_thread(self) -> None:
        try:
            self._model = await asyncio.to_thread(self._load)
        except RunGPTError as error:
            self._why = error.message
            log.error("the model %s cannot be loaded: %s", self.name, error.message)
        except Exception as error:
            self._why = f"{type(error).__name__}: {error}"
            log.exception("the model %s cannot be loaded", self.name)
        finally:
            self._loading = None

    def _load(self) -> "Model":
        with large_imports():
            from run_gpt.local.create import load_model  # imports torch; an executor without a model does not need it

        gc.freeze()

        model = load_model(
            self._model_config, self._engine_config, on_progress=self._note_progress, on_dead=self._on_dead
        )
        for note in model.notes:
            log.warning("%s", note)
        if model.kernels:
            log.info("%s: native kernels %s", self.name, model.kernels)
        gc.collect()
        gc.freeze()  # else Python goes through all objects of torch and transformers now and then: 0.2 s on the loop
        return model

    def _note_progress(self, step: str, done: int, total: int | None) -> None:
        self._progress = (step, done, total)


def _end(held: list["Model"]) -> None:
    """End the model in `held`, and return its memory to the system.

    In one thread: another that has called `shutdown` may keep its reference until after the memory is returned.
    """
    held.pop().shutdown()
    gc.unfreeze()
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc keeps freed memory between used blocks
        libc.malloc_trim(0)
