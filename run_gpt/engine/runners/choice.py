"""Choice of a model's runner."""

from typing import TYPE_CHECKING, Any, get_args

from run_gpt.config import EngineConfig, Runner
from run_gpt.engine.runner import ModelRunner
from run_gpt.errors import SetupError
from run_gpt.process.devices import is_split

if TYPE_CHECKING:
    from run_gpt.engine.runners.native.weights import PackedWeights


def choose_runner(
    model: Any, config: EngineConfig, *, packed: "PackedWeights | None" = None, stateful: bool = False
) -> ModelRunner:
    """Return the fastest runner that supports a transformers model, or the one that `config.runner` names.

    `packed`: the model's weights, if they are packed; joined weights are only for the native runner. `stateful`: it
    keeps a state instead of a KV cache, though transformers does not mark it so. Raises SetupError for a runner that
    does not support the model.
    """
    from run_gpt.engine.runners import llama
    from run_gpt.engine.runners.alone import AloneRunner
    from run_gpt.engine.runners.generic import GenericRunner
    from run_gpt.engine.runners.native import runner as native
    from run_gpt.engine.runners.native.families import FAMILIES

    stateful = stateful or getattr(model, "_is_stateful", False)
    fits_native = packed is not None and packed.joined
    wanted: Runner = config.runner
    if wanted == "auto":
        fast: Runner = "native" if fits_native else "fast" if packed is None and llama.fits(model) else "generic"
        wanted = "alone" if stateful else fast
    if wanted not in get_args(Runner):
        raise SetupError(f"runner {wanted!r} is not one of {', '.join(get_args(Runner))}")
    if wanted == "native" and not fits_native:
        raise SetupError(
            f"--runner native: it runs {', '.join(FAMILIES)} on a CPU, in sizes that are "
            f"multiples of 32, and this is {_described(model)}; leave the option out"
        )
    if wanted == "fast" and not llama.fits(model):
        raise SetupError(
            f"--runner fast: it runs {', '.join(llama.FAMILIES)} in fp32, fp16 or bf16 on one device, and this is "
            f"{_described(model)}; leave the option out"
        )
    if wanted == "generic" and stateful:
        raise SetupError(f"--runner generic: {model.config.model_type} has no key-value cache; leave the option out")
    if wanted == "native":
        assert packed is not None  # checked by fits_native
        runner = native.NativeRunner(model, packed, config)
        runner.take_over()
        return runner
    if wanted == "fast":
        return llama.LlamaRunner(model, config.max_running)
    return GenericRunner(model) if wanted == "generic" else AloneRunner(model)


def _described(model: Any) -> str:
    """Describe a model for the error message of a runner that does not support it."""
    where = "split, not on one device" if is_split(model) else f"on {model.device}"
    return f"{model.config.model_type} {where}"
