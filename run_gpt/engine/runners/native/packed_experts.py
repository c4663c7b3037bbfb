"""Experts of a layer, as one matrix for each expert and product."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from run_gpt.engine.runners.native.binding import LANES, Context, Matrix, Memory
from run_gpt.engine.runners.native.inspection import ExpertSizes, clamps
from run_gpt.engine.runners.native.modules import Packed
from run_gpt.engine.runners.native.shapes import turns_of_halves

PARAMETERS = ("gate_up_proj", "down_proj")
"""Parameters that stack the weights of all experts of a layer."""


@dataclass(frozen=True)
class Stacked:
    """Place of a parameter that stacks those of all experts, in their matrices."""

    matrices: Sequence[Matrix]
    shape: tuple[int, ...]
    """Shape of the parameter: of weights, [experts, rows, columns], of biases, [experts, rows]."""
    order: torch.Tensor | None
    """Rows in the order in which they are packed; None: as they are."""
    transposed: bool = False

    def pack(self, stacked: torch.Tensor, *, restored: bool) -> None:
        """Pack the experts one by one; weights that are `restored` are there already."""
        if restored and len(self.shape) == 3:
            return
        for matrix, part in zip(self.matrices, stacked, strict=True):
            rows = part.T if self.transposed else part
            ordered = rows if self.order is None else rows[self.order]
            if part.dim() == 1:
                matrix.fill_bias(ordered)
            else:
                matrix.fill(ordered)


class PackedExperts(Packed):
    """Experts of a layer: see transformers' MixtralExperts and GptOssExperts."""

    def __init__(self, context: Context, module: Any, matrices: Mapping[str, Sequence[Matrix]]):
        """Create the module in the place of `module`. `matrices`: those of all experts, by parameter."""
        super().__init__()
        self._context, (self._gate_up, self._down) = context, (matrices[name] for name in PARAMETERS)
        self._activate: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
        if clamps(module):
            self._activate = partial(_clamped, module.alpha, module.limit)
        else:
            self._activate = partial(_gated, module.act_fn)
        self.num_experts = len(self._down)
        for name, value in module.named_parameters(recurse=False):
            self.stand_in(name, value.shape, value.dtype)

    def forward(self, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        """Apply the chosen experts: [tokens, hidden], [tokens, k] and [tokens, k] -> [tokens, hidden]."""
        out = torch.zeros_like(hidden)
        for expert in range(self.num_experts):
            token, choice = torch.where(top_k_index == expert)
            if not len(token):
                continue
            turns = self._context.linear(self._gate_up[expert], hidden[token]).view(len(token), -1, 2, LANES)
            active = self._activate(turns[:, :, 0].flatten(1), turns[:, :, 1].flatten(1))
            answer = self._context.linear(self._down[expert], active)
            out.index_add_(0, token, (answer * top_k_weights[token, choice, None]).to(out.dtype))
        return out


def expert_matrices(
    sizes: ExpertSizes, precisions: Mapping[str, str], memory: Memory, kernels: Any
) -> dict[str, list[Matrix]]:
    """Return matrices of all experts, which take space in `memory`, by parameter; so are `precisions`."""
    outputs = {"gate_up_proj": (2 * sizes.width, sizes.hidden), "down_proj": (sizes.hidden, sizes.width)}
    return {
        name: [
            Matrix(kernels, precisions[name], *outputs[name], bias=sizes.biased, memory=memory)
            for _ in range(sizes.count)
        ]
        for name in PARAMETERS
    }


def expert_places(module: Any, sizes: ExpertSizes, matrices: Mapping[str, Sequence[Matrix]]) -> dict[str, Stacked]:
    """Return the places of a module's parameters, by name. Panels of gate and up take turns."""
    order = turns_of_halves(sizes.width)
    if sizes.alternating:
        order = torch.arange(2 * sizes.width, device="cpu").view(-1, LANES, 2).transpose(1, 2).flatten()
    places: dict[str, Stacked] = {}
    for name, parameter in module.named_parameters(recurse=False):
        of = "gate_up_proj" if name.startswith("gate_up_proj") else "down_proj"
        transposed = sizes.transposed and parameter.dim() == 3
        places[name] = Stacked(
            matrices[of], tuple(parameter.shape), order if of == "gate_up_proj" else None, transposed
        )
    return places


def _gated(act_fn: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    active: torch.Tensor = act_fn(gate) * up
    return active


def _clamped(alpha: float, limit: float, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return (up + 1) * gate * torch.sigmoid(gate * alpha)
