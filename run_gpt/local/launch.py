"""Launch of a model in three phases: its placement, its weights, and its engine."""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from run_gpt.config import EngineConfig, ModelConfig
from run_gpt.engine.engine import BatchEngine
from run_gpt.engine.exits import before_exit
from run_gpt.engine.interface import Engine
from run_gpt.engine.runner import ModelRunner
from run_gpt.engine.runners.base import end_ids_of
from run_gpt.engine.runners.choice import choose_runner
from run_gpt.engine.runners.compiled import compile_forward, prepare_compiler
from run_gpt.engine.runners.generic import GenericRunner
from run_gpt.engine.runners.memory import fitting_tokens
from run_gpt.engine.runners.native.families import FAMILIES
from run_gpt.engine.runners.native.runner import OWN_CODE, NativeRunner, fits
from run_gpt.engine.runners.native.weights import PackedWeights
from run_gpt.engine.runners.rotary import switch_length
from run_gpt.engine.text import Decode
from run_gpt.errors import InvalidRequest, ModelLoadError, SetupError
from run_gpt.local.kernels import finished, origin, packer_for, start_kernels
from run_gpt.local.parallel import Followers, load_shares
from run_gpt.local.prompts import answer_decoder
from run_gpt.models import LoadedModel, OnProgress, no_progress
from run_gpt.models.adapters import adapter_paths
from run_gpt.models.cache import cache_root
from run_gpt.models.files import adapter_folder, startup_adapters
from run_gpt.models.grammar import GrammarCompiler
from run_gpt.models.placement import Placement, place
from run_gpt.models.target import QUANTISED
from run_gpt.process.devices import is_split

if TYPE_CHECKING:
    from run_gpt.engine.runners.native.binding import Kernels

    MaybeKernels = Future[Kernels] | None

_log = logging.getLogger("run_gpt")


@dataclass(frozen=True)
class RunningModel:
    """Loaded model with its engine, which runs. The engine's `shutdown` frees everything but the grammars."""

    loaded: LoadedModel
    engine: Engine
    grammars: GrammarCompiler
    context_length: int
    """Largest number of tokens of prompt and answer together: of the model, of the settings and of the KV cache."""
    kernels: str | None = None
    """Words for the native kernels that the model uses, or will when they are compiled; None: it uses none."""


def launch(
    model_config: ModelConfig,
    engine_config: EngineConfig,
    *,
    on_progress: OnProgress = no_progress,
    on_dead: Callable[[], None] = lambda: None,
) -> RunningModel:
    """Load a model and start its engine. After a failure or an interrupt everything is freed.

    The native kernels are compiled meanwhile. `on_dead` is called if the engine dies. Raises SetupError or
    ModelNotFound.
    """
    kernels = _start_compilers(model_config, engine_config)
    placement = place(model_config, on_progress=on_progress)
    if engine_config.runner == "auto" and _needs_generic(placement):
        engine_config = replace(engine_config, runner="generic")
    loaded, followers = load_shares(placement, packer_for(kernels, engine_config, placement), on_progress)
    return start_model(loaded, engine_config, kernels, followers, on_dead)


def _needs_generic(placement: Placement) -> bool:
    """Return True if an adapter changes layers for which the native runner, else chosen for this model, has none."""
    config = placement.config
    folders = [adapter_folder(path, config) for path in startup_adapters(config).values()]
    paths = [path for folder in folders for path in adapter_paths(folder)]
    family = FAMILIES.get(placement.model_type or "")
    return family is not None and not all(family.adapts(path) for path in paths)


def _start_compilers(model_config: ModelConfig, engine_config: EngineConfig) -> "MaybeKernels":
    cache = cache_root(model_config.cache_dir)
    kernels = start_kernels(
        engine_config,
        model_config.device,
        cache / "kernels",
        quantised=model_config.precision in QUANTISED,
        parallel=model_config.tensor_parallel != 1,
    )
    if engine_config.compile:
        prepare_compiler(cache / "compiled")
    return kernels


def start_model(
    loaded: LoadedModel,
    config: EngineConfig,
    kernels: "MaybeKernels",
    followers: Followers | None,
    on_dead: Callable[[], None],
) -> RunningModel:
    """Start the engine of a model and load the adapters into it. After a failure both are freed. Raises SetupError."""
    with ExitStack() as on_failure:
        on_failure.callback(loaded.close)
        loaded = _within_one_embedding(loaded, config, followers)
        config = replace(config, max_context=min(loaded.context_length, config.max_context or loaded.context_length))
        grammars = GrammarCompiler(loaded.tokenizer, loaded.vocabulary, end_ids_of(loaded.model))
        on_failure.callback(grammars.close)
        used = _kernels_text(loaded, config, kernels)
        engine = start_engine(loaded, answer_decoder(loaded), config, kernels, followers=followers, on_dead=on_dead)
        on_failure.callback(engine.shutdown)
        try:
            for name, weights in loaded.adapters.items():
                engine.load_adapter(name, weights)
        except InvalidRequest as error:
            raise ModelLoadError(error.message) from error
        context = min(limit for limit in (config.max_context, engine.scheduler.slots.longest) if limit)
        on_failure.pop_all()
    return RunningModel(loaded, engine, grammars, context, used)


def _within_one_embedding(loaded: LoadedModel, config: EngineConfig, followers: Followers | None) -> LoadedModel:
    """Return the model with a context of one rotary embedding, where nothing chooses another for a longer text."""
    switch = switch_length(loaded.model.config)
    own_code = bool(getattr(loaded.model.config, "auto_map", None)) and loaded.model.__module__.startswith(OWN_CODE)
    if switch is None or switch >= loaded.context_length or not (own_code or followers or config.compile):
        return loaded
    why = "code of its own (--trust-remote-code)" if own_code else "--compile or --tensor-parallel"
    note = f"the context is {switch} tokens, not {loaded.context_length}: longer texts have other rotary frequencies, "
    return replace(loaded, context_length=switch, notes=(*loaded.notes, f"{note}which are not exact with {why}"))


def _kernels_text(loaded: LoadedModel, config: EngineConfig, kernels: "MaybeKernels") -> str | None:
    if loaded.packer is None and (config.runner not in ("auto", "native") or not fits(loaded.model)):
        return None
    return None if kernels is None else origin(kernels)


def start_engine(
    loaded: LoadedModel,
    decode: Decode,
    config: EngineConfig,
    kernels: "MaybeKernels",
    *,
    followers: Followers | None = None,
    on_dead: Callable[[], None] = lambda: None,
) -> BatchEngine:
    """Start the engine of a model; its `shutdown` closes the model. `on_dead` is called if the engine dies.

    While the kernels are being compiled, the generic runner serves, which does not change the model. Then the native
    runner takes over. Raises SetupError if `config.runner` cannot run the model, or if required kernels cannot be
    compiled.
    """
    packable = loaded.packer is None and kernels is not None and config.runner in ("auto", "native")
    native = kernels if packable and fits(loaded.model) else None
    awaited = native if native is not None and config.runner == "auto" and not native.done() else None
    if awaited is not None:
        runner = choose_runner(loaded.model, replace(config, runner="generic"))
    elif followers is not None or config.compile:
        runner = _generic_runner(loaded, config, followers)
    else:
        runner = choose_runner(loaded.model, config, packed=_packed(loaded, config, native), stateful=loaded.stateful)
    if config.max_cache_tokens is None:
        config = replace(config, max_cache_tokens=_cache_tokens(loaded, config, runner, followers))
    engine = BatchEngine(
        runner, decode, config, on_dead=on_dead, on_shutdown=loaded.close, vocabulary=loaded.vocabulary
    )
    if followers is not None:
        followers.watch(engine.fail)
    if awaited is not None:
        awaited.add_done_callback(lambda done: _take_over(done, engine, loaded, config))
    return engine


def _packed(loaded: LoadedModel, config: EngineConfig, native: "MaybeKernels") -> PackedWeights | None:
    """Return the packed weights, if there are any. `native`: kernels that pack them now, once they are compiled."""
    if native is not None and (built := finished(native, must=config.runner == "native")) is not None:
        return PackedWeights.of(loaded.model, built, loaded.precision)
    return cast("PackedWeights | None", loaded.packer)


def _generic_runner(loaded: LoadedModel, config: EngineConfig, followers: Followers | None) -> ModelRunner:
    """Return the generic runner for --compile, or for --tensor-parallel. Raises SetupError."""
    if loaded.stateful:
        raise SetupError(
            f"--compile and --tensor-parallel are for models with a key-value cache, and this is "
            f"{loaded.model.config.model_type}: leave them out"
        )
    runner = GenericRunner(loaded.model)
    if config.compile:
        if is_split(loaded.model):
            raise SetupError("--compile is for a model on one device: leave it or --device-map out")
        compile_forward(loaded.model)
    return runner if followers is None else followers.leading(runner, loaded.device)


def _cache_tokens(
    loaded: LoadedModel, config: EngineConfig, runner: ModelRunner, followers: Followers | None
) -> int | None:
    """Return the size of the KV cache, in tokens, that the free memory allows."""
    context = min(loaded.context_length, config.max_context or loaded.context_length)
    context = runner.ring.cost(context) if runner.ring else context
    processes = 1 if followers is None else followers.size
    shared = loaded.packer.shared_bytes if loaded.packer is not None else 0
    return fitting_tokens(runner.cache_bytes_per_token, loaded.device, context, processes, shared)


def _take_over(kernels: "Future[Kernels]", engine: BatchEngine, loaded: LoadedModel, config: EngineConfig) -> None:
    """Pack the weights while the present runner serves, then replace it; called in the thread that compiled."""
    if (built := finished(kernels, must=False)) is None:
        return
    with before_exit() as goes_on:
        if not goes_on:
            return
        runner = NativeRunner(loaded.model, PackedWeights.of(loaded.model, built, loaded.precision), config)
        try:
            if engine.replace_runner(runner):
                runner.take_over()
        except ValueError as error:  # an adapter that only the generic runner has
            _log.warning("answers will come slower than they could: %s", error)
