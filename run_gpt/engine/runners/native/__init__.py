"""Native runner: most families on a CPU, by our own kernels, which are compiled for the machine."""

from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from run_gpt.engine.runners.native.build import built, ready
from run_gpt.errors import SetupError

if TYPE_CHECKING:
    from run_gpt.engine.runners.native.binding import Kernels


def building(folder: Path) -> "Future[Kernels]":
    """Return the kernels, at once if they are in `folder`; else a thread compiles them into it, in about 10 s.

    The future's error is a SetupError with the reason. Raises SetupError if this machine cannot run the kernels.
    """
    future: Future[Kernels] = Future()
    if ready(folder):
        _build(folder, future)
    else:
        Thread(target=_build, args=(folder, future), name="rungpt-build", daemon=True).start()
    return future


def _build(folder: Path, future: "Future[Kernels]") -> None:
    from run_gpt.engine.runners.native.binding import Kernels

    try:
        future.set_result(Kernels(built(folder)))
    except SetupError as error:
        future.set_exception(error)
    except Exception as error:  # a full disk, a library that does not load: the future must not stay open
        future.set_exception(SetupError(f"the native kernels cannot be compiled: {error}"))
