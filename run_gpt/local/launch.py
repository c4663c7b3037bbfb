"""Start of an engine for a loaded model: with the fastest runner at once, or as soon as its kernels are compiled."""

import logging
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from run_gpt.config import EngineConfig
from run_gpt.engine.engine import BatchEngine
from run_gpt.engine.runners import native
from run_gpt.engine.runners.choice import choose_runner
from run_gpt.engine.runners.compiled import compile_forward
from run_gpt.engine.runners.memory import fitting_tokens
from run_gpt.engine.runners.native.build import unsupported
from run_gpt.engine.runners.native.runner import NativeRunner, fits, fits_config
from run_gpt.engine.runners.native.weights import PackedWeights
from run_gpt.engine.runners.parallel import ParallelRunner
from run_gpt.engine.text import Decode
from run_gpt.errors import SetupError
from run_gpt.local.parallel import Followers
from run_gpt.models import LoadedModel
from run_gpt.models.loading import PackerFor
from run_gpt.process.devices import is_split

if TYPE_CHECKING:
    from run_gpt.engine.runners.native.binding import Kernels

_log = logging.getLogger("run_gpt")


def start_kernels(
    config: EngineConfig, device: str | None, folder: Path, *, quantised: bool = False, parallel: bool = False
) -> "Future[Kernels] | None":
    """Start to compile the native kernels, unless another runner or a GPU is wanted, or this machine cannot run them.

    `quantised`: bit8 or bit4 is wanted, for which the generic runner needs these kernels, too.

    Raises SetupError if the native runner is wanted and this machine cannot run it.
    """
    on_gpu = device.partition(":")[0] != "cpu" if device else torch.cuda.is_available()
    wanted = [flag for flag, on in (("--compile", config.compile), ("--tensor-parallel", parallel)) if on]
    if len(wanted) > 1:
        raise SetupError(f"{' and '.join(wanted)} do not go together: leave one out")
    if wanted and config.runner not in ("auto", "generic"):
        raise SetupError(f"{wanted[0]} is for the generic runner: leave --runner {config.runner} out")
    runners = ("auto", "native", "generic", "alone") if quantised else ("auto", "native")
    if wanted or config.runner not in runners or on_gpu:
        return None
    if reason := unsupported():
        if config.runner == "native":
            raise SetupError(f"--runner native: {reason}")
        _log.warning("answers will come slower than they could, without the native kernels: %s", reason)
        return None
    return native.building(folder)


def packer_for(kernels: "Future[Kernels] | None", config: EngineConfig) -> PackerFor:
    """Return the function that chooses the weight packer of a model while it is loaded: see `load`.

    Our own kernels pack the weights of a model for the native runner, if the kernels are compiled. They also pack any
    model in bit8 or bit4. Such a model waits for the kernels: a runner that served meanwhile would need the memory of
    unpacked weights.
    """

    def choose(model_config: Any, precision: str, own: Mapping[str, str]) -> PackedWeights | None:
        native = config.runner in ("auto", "native") and fits_config(model_config)
        quantised = precision in ("bit8", "bit4") and config.runner != "fast"
        if kernels is None or not (quantised or (native and (own or kernels.done()))):
            return None
        built = _result(kernels, must=config.runner == "native")
        return None if built is None else PackedWeights(built, precision, own=own, joined=native)

    return choose


def start_engine(
    loaded: LoadedModel,
    decode: Decode,
    config: EngineConfig,
    kernels: "Future[Kernels] | None",
    *,
    followers: Followers | None = None,
    **options: Any,
) -> BatchEngine:
    """Start an engine for `loaded`; `options` go to its constructor.

    While the kernels are being compiled, the generic runner serves, which does not change the model. Then the native
    runner takes over. Raises SetupError if `config.runner` cannot run the model, or if required kernels cannot be
    compiled.
    """
    packed = cast("PackedWeights | None", loaded.packer)
    native_soon = packed is None and kernels is not None and fits(loaded.model)
    meanwhile = native_soon and config.runner == "auto" and not kernels.done()  # type: ignore[union-attr]
    if meanwhile:
        runner = choose_runner(loaded.model, replace(config, runner="generic"))
    else:
        if native_soon and config.runner in ("auto", "native"):
            built = _result(kernels, must=config.runner == "native")  # type: ignore[arg-type]
            packed = PackedWeights.of(loaded.model, built, loaded.precision) if built is not None else None
        plain = followers is not None or config.compile
        if plain and getattr(loaded.model, "_is_stateful", False):
            raise SetupError(
                f"--compile and --tensor-parallel are for models with a key-value cache, and this is "
                f"{loaded.model.config.model_type}: leave them out"
            )
        wanted = replace(config, runner="generic") if plain else config
        runner = choose_runner(loaded.model, wanted, packed=packed)
    if remove := getattr(loaded.model, "remove_offloaded", None):
        options["on_shutdown"] = remove
    if followers is not None:
        runner = _parallel(runner, followers, loaded.device)
        options["on_shutdown"] = followers.close
    if config.compile:
        if is_split(loaded.model):
            raise SetupError("--compile is for a model on one device: leave it or --device-map out")
        compile_forward(loaded.model)
    if config.max_cache_tokens is None:
        context = min(loaded.context_length, config.max_context or loaded.context_length)
        processes = followers.size if followers is not None else 1
        tokens = fitting_tokens(runner.cache_bytes_per_token, loaded.device, context, processes)
        config = replace(config, max_cache_tokens=tokens)
    engine = BatchEngine(runner, decode, config, **options)
    if followers is not None:
        followers.watch(engine.fail)
    if meanwhile:
        kernels.add_done_callback(lambda done: _go_on(done, engine, loaded, config))  # type: ignore[union-attr]
    return engine


def _parallel(runner: Any, followers: Followers, device: str) -> ParallelRunner:
    """Return the runner of the first process, once all have loaded. On a CPU all shares are in the same memory."""
    followers.wait_loaded()
    shares = 1 if device == "cpu" else followers.size
    cache_bytes = runner.cache_bytes_per_token // shares
    return ParallelRunner(runner, followers.tell, followers.group, cache_bytes, followers.kill)


def _go_on(kernels: "Future[Kernels]", engine: BatchEngine, loaded: LoadedModel, config: EngineConfig) -> None:
    """Pack the weights while the present runner serves, then replace it; called in the thread that compiled."""
    if (built := _result(kernels, must=False)) is None:
        return
    runner = NativeRunner(loaded.model, PackedWeights.of(loaded.model, built, loaded.precision), config)
    try:
        if engine.replace_runner(runner):
            runner.take_over()
    except ValueError as error:  # an adapter that only the generic runner has
        _log.warning("answers will come slower than they could: %s", error)


def _result(kernels: "Future[Kernels]", *, must: bool) -> "Kernels | None":
    try:
        return kernels.result()
    except SetupError as error:
        if must:
            raise
        _log.warning("answers will come slower than they could: %s", error)
        return None
