"""Native runner: most families on a CPU, by our own kernels, prebuilt for its kind or compiled for it."""

from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from run_gpt.config import KernelSource
from run_gpt.engine.runners.native.build import built, prebuilt, ready
from run_gpt.errors import SetupError

if TYPE_CHECKING:
    from run_gpt.engine.runners.native.binding import Kernels


def building(folder: Path, source: KernelSource = "auto") -> "Future[Kernels]":
    """Return the kernels, at once if they are prebuilt or in `folder`; else a thread compiles them, in about 25 s.

    The future's error is a SetupError with the reason. Raises SetupError if this machine cannot run the kernels.
    """
    future: Future[Kernels] = Future()
    if (source != "compiled" and prebuilt() is not None) or ready(folder):
        _build(folder, source, future)
    else:
        Thread(target=_build, args=(folder, source, future), name="rungpt-build", daemon=True).start()
    return future


def _build(folder: Path, source: KernelSource, future: "Future[Kernels]") -> None:
    from run_gpt.engine.runners.native.binding import Kernels

    try:
        found = None if source == "compiled" else prebuilt()
        future.set_result(
            Kernels(found[1], f"prebuilt for {found[0]}") if found else Kernels(built(folder), "compiled for this CPU")
        )
    except SetupError as error:
        future.set_exception(error)
    except Exception as error:  # a full disk, a library that does not load: the future must not stay open
        future.set_exception(SetupError(f"the native kernels cannot be compiled: {error}"))
