"""Facts about the modules of a transformers model: its embeddings, its experts, and sizes of weights."""

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


def are_experts(module: Any) -> bool:
    """Return True for experts like Mixtral's, in sizes that can be packed."""
    shapes = expert_shapes(module)
    if len(shapes) != 2 or not hasattr(module, "act_fn") or len(list(module.parameters(recurse=False))) != 2:
        return False
    (count, wide, hidden), (_, out, narrow) = shapes
    return (wide, out) == (2 * narrow, hidden) and hidden % GROUP == 0 and narrow % GROUP == 0 and count > 0


def expert_shapes(module: Any) -> list[tuple[int, int, int]]:
    weights = [module._parameters.get(name) for name in ("gate_up_proj", "down_proj")]
    shapes = [tuple(weight.shape) for weight in weights if weight is not None]
    return [(shape[0], shape[1], shape[2]) for shape in shapes if len(shape) == 3]


def linear_shape(module: Any) -> tuple[int, int]:
    """Return the numbers of outputs and inputs; for an embedding, of words and their size."""
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, Conv1D) else (rows, columns)
