"""Replacements of a transformers model's layers with packed weights, so that no weight is held twice."""

from collections.abc import Sequence

import torch
from torch import nn

from run_gpt.engine.runners.native.binding import LANES, Context, Matrix


class Packed(nn.Module):
    """Module whose parameters are packed into matrices. For a loader it has their names and shapes, but no memory."""

    def stand_in(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> None:
        """Register a parameter without memory."""
        self.register_parameter(name, nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False))

    def settle(self) -> None:
        """Replace the parameters, once all are packed, by empty ones of the same type, on the device of the others."""
        for name, parameter in list(self.named_parameters(recurse=False)):
            self.register_parameter(name, nn.Parameter(torch.empty(0, dtype=parameter.dtype), requires_grad=False))


class PackedLinear(Packed):
    """Layer like `nn.Linear` over outputs of a packed matrix: those from `start`, or every second panel from there."""

    def __init__(
        self,
        context: Context,
        matrix: Matrix,
        start: int,
        outputs: int,
        *,
        interleaved: bool = False,
        order: torch.Tensor | None = None,
    ):
        """`order`: see `_Group` in weights.py."""
        super().__init__()
        self._places = None if order is None else order.argsort()
        self._context, self._matrix, self._start, self._interleaved = context, matrix, start, interleaved
        self.in_features, self.out_features = matrix.inputs, outputs
        self.register_parameter("bias", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See nn.Linear."""
        out = self._context.linear(self._matrix, x)
        if self._interleaved:
            return out.view(*x.shape[:-1], -1, 2, LANES)[..., self._start, :].flatten(-2)
        own = out[..., self._start : self._start + self.out_features]
        return own if self._places is None else own[..., self._places]


class PackedEmbedding(Packed):
    """Layer like `nn.Embedding` over a packed matrix. Its rows are multiplied by `scale`, as in Gemma."""

    def __init__(self, matrix: Matrix, rows: int, scale: float):
        super().__init__()
        self._matrix, self.embed_scale = matrix, scale
        self.num_embeddings, self.embedding_dim = rows, matrix.inputs

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """See nn.Embedding."""
        rows = self._matrix.rows(ids)
        return (rows if self.embed_scale == 1 else rows * self.embed_scale).to(self.get_parameter("weight").dtype)
