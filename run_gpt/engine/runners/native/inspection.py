"""Facts about the modules of a transformers model: its embeddings, its experts, and sizes of weights."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from run_gpt.engine.runners.native.binding import GROUP


def outer_names(model: Any) -> set[str]:
    """Return the names of the embedding and of the output layer."""
    outer = (model.get_input_embeddings(), model.get_output_embeddings())
    return {name for name, module in model.named_modules() if any(module is one for one in outer)}


def embedding_scale(module: Any) -> float | None:
    """Return the factor that an embedding applies to its rows; None for an embedding of an unknown kind."""
    if type(module) is nn.Embedding:
        return 1.0
    scale = getattr(module, "scalar_embed_scale", getattr(module, "embed_scale", None))
    if type(module).__name__.endswith("ScaledWordEmbedding") and isinstance(scale, int | float):
        return float(scale)
    return None


@dataclass(frozen=True)
class ExpertSizes:
    """Sizes of a layer's experts, and the form of their parameters `gate_up_proj` and `down_proj`."""

    count: int
    hidden: int
    width: int
    transposed: bool
    """True if an expert's weight is [inputs, outputs]."""
    alternating: bool
    """True if the outputs of gate and up take turns, one by one; False if all of gate come before all of up."""
    biased: bool


def expert_sizes(module: Any) -> ExpertSizes | None:
    """Return the sizes of experts like Mixtral's or gpt-oss's; None for another module, or sizes without a packing."""
    names = ("gate_up_proj", "down_proj")
    shapes = [tuple(module._parameters[name].shape) for name in names if module._parameters.get(name) is not None]
    biased, transposed = getattr(module, "has_bias", False), getattr(module, "is_transposed", False)
    expected = {*names, *(f"{name}_bias" for name in names if biased)}
    if {name for name, _ in module.named_parameters(recurse=False)} != expected or not _is_known(module):
        return None
    if len(shapes) != 2 or any(len(shape) != 3 for shape in shapes):
        return None
    (count, wide, hidden), (_, out, narrow) = ((s[0], s[2], s[1]) if transposed else s for s in shapes)
    if (wide, out) != (2 * narrow, hidden) or hidden % GROUP or narrow % GROUP or not count:
        return None
    return ExpertSizes(count, hidden, narrow, transposed, not getattr(module, "is_concatenated", True), biased)


def _is_known(module: Any) -> bool:
    """Return True for experts with transformers' usual activation of gate, times up, or with gpt-oss's."""
    if clamps(module):
        return True
    name = getattr(getattr(type(module), "_apply_gate", None), "__name__", "_default_apply_gate")
    usual = name == "_default_apply_gate" and not getattr(module, "has_post_expert_norm", False)
    return usual and hasattr(module, "act_fn")


def clamps(module: Any) -> bool:
    """Return True for gpt-oss's experts, whose activation is clamped."""
    return type(module).__name__ == "GptOssExperts"


def submodule(model: Any, path: str) -> Any | None:
    """Return a module of a model; None if it has none of this name."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def linear_shape(module: Any) -> tuple[int, int]:
    """Return the numbers of outputs and inputs; for an embedding, of words and their size."""
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, Conv1D) else (rows, columns)
