"""Native kernels of a load: prebuilt or compiled beside it; they pack the weights if they are ready in time."""

import logging
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from run_gpt.config import EngineConfig
from run_gpt.engine.runners import native
from run_gpt.engine.runners.native.build import layout, unsupported
from run_gpt.engine.runners.native.runner import fits_config
from run_gpt.engine.runners.native.weights import PackedWeights
from run_gpt.errors import SetupError
from run_gpt.models.cache import ModelCache
from run_gpt.models.loading import PackerFor
from run_gpt.models.packed_files import PackedFile
from run_gpt.models.placement import Placement

if TYPE_CHECKING:
    from run_gpt.engine.runners.native.binding import Kernels

_log = logging.getLogger("run_gpt")


def start_kernels(
    config: EngineConfig, device: str | None, folder: Path, *, quantised: bool = False, parallel: bool = False
) -> "Future[Kernels] | None":
    """Get the native kernels, or start to compile them, unless another runner or a GPU is wanted.

    None as well if this machine cannot run them, which is logged.

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
    if reason := unsupported(config.kernels):
        if config.runner == "native":
            raise SetupError(f"--runner native: {reason}")
        _log.warning("answers will come slower than they could, without the native kernels: %s", reason)
        return None
    return native.building(folder, config.kernels)


def packer_for(
    kernels: "Future[Kernels] | None", config: EngineConfig, placement: Placement | None = None
) -> PackerFor:
    """Return the function that chooses the weight packer of a model while it is loaded: see `load`.

    With `placement` the packed weights are kept in the model cache, and taken from there if they are.

    Our own kernels pack the weights of a model for the native runner, if the kernels are compiled. They also pack any
    model in bit8 or bit4. Such a model waits for the kernels: a runner that served meanwhile would need the memory of
    unpacked weights.
    """

    def choose(model_config: Any, precision: str, own: Mapping[str, str]) -> PackedWeights | None:
        own_code = placement is not None and placement.trust_remote_code and getattr(model_config, "auto_map", None)
        native = config.runner in ("auto", "native") and fits_config(model_config) and not own_code
        quantised = precision in ("bit8", "bit4") and config.runner != "fast"
        if kernels is None or not (quantised or (native and (own or kernels.done()))):
            return None
        built = finished(kernels, must=config.runner == "native")
        if built is None:
            return None
        kept = None if placement is None else _kept(placement, precision, own, joined=native)
        return PackedWeights(built, precision, own=own, joined=native, kept=kept)

    return choose


def _kept(placement: Placement, precision: str, own: Mapping[str, str], *, joined: bool) -> PackedFile | None:
    """Return the place of a model's packed weights; None if its files are of a kind that is not looked at."""
    kind, form = f"{precision}-{'joined' if joined else 'single'}", f"{layout()}\n{sorted(own.items())}"
    try:
        return PackedFile(ModelCache(placement.config.cache_dir), placement.files.folder, kind, form)
    except (OSError, ValueError):  # the loader reports it
        return None


def finished(kernels: "Future[Kernels]", *, must: bool) -> "Kernels | None":
    """Wait for the kernels. If they cannot be compiled: raise SetupError if `must`, else log it and return None."""
    try:
        return kernels.result()
    except SetupError as error:
        if must:
            raise
        _log.warning("answers will come slower than they could: %s", error)
        return None


def origin(kernels: "Future[Kernels]") -> str | None:
    """Return words for where the kernels come from; None if they cannot be compiled."""
    if not kernels.done():
        return "being compiled; another runner answers until then"
    return None if kernels.exception() else kernels.result().origin
