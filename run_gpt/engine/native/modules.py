"""What takes the place of a transformers model's layers whose weights are packed: no weight is held twice."""

import torch
from torch import nn

from run_gpt.engine.native.binding import LANES, Context, Matrix


class PackedLinear(nn.Module):
    """`nn.Linear` over outputs of a packed matrix: the ones from `start`, or every second panel from panel `start`."""

    def __init__(self, context: Context, matrix: Matrix, start: int, outputs: int, *, interleaved: bool = False):
        super().__init__()
        self._context, self._matrix, self._start, self._interleaved = context, matrix, start, interleaved
        self.in_features, self.out_features = matrix.inputs, outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See nn.Linear."""
        out = self._context.linear(self._matrix, x)
        if self._interleaved:
            return out.view(*x.shape[:-1], -1, 2, LANES)[..., self._start, :].flatten(-2)
        return out[..., self._start : self._start + self.out_features]


class PackedEmbedding(nn.Module):
    """`nn.Embedding` over a packed matrix."""

    def __init__(self, matrix: Matrix, dtype: torch.dtype):
        super().__init__()
        self._matrix, self._dtype = matrix, dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """See nn.Embedding."""
        return self._matrix.rows(ids).to(self._dtype)
