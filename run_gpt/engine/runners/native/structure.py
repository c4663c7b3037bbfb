"""The kernels' structures of a model: its layers, norms and experts, and tables of rotary angles."""

import ctypes
import inspect
from collections.abc import Sequence
from itertools import accumulate
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from run_gpt.engine.runners.native.binding import Matrix
from run_gpt.engine.runners.native.families import Names
from run_gpt.engine.runners.native.inspection import submodule
from run_gpt.engine.runners.native.packed_experts import PARAMETERS
from run_gpt.engine.runners.native.shapes import Shape
from run_gpt.engine.runners.native.structs import ExpertsStruct, LayerStruct, MatrixStruct, NormStruct
from run_gpt.engine.runners.native.weights import PackedWeights

ANGLES_AT_ONCE = 4096
"""Number of positions whose rotary angles are computed together."""
_NO_NORM, _RMS, _MEAN = range(3)
_ROUTER_FIELDS = (
    *("chosen", "width", "sigmoid", "renormalised", "groups", "chosen_groups", "scale", "alpha", "limit"),
)
_EPSILONS = ("variance_epsilon", "eps", "epsilon")
_ROTARY_BASE = 10000
"""Base of the rotary embeddings of GPT-J and CodeGen, which have no module for them."""


class Rotary:
    """Cosines and sines of all kinds of a model's layers: [positions, rotated / 2] each, filled as texts grow."""

    def __init__(self, model: Any, names: Names, shape: Shape, positions: int):
        """Reserve address space, which takes memory where it is written: a million tokens would take gigabytes."""
        self._shape, self._known = shape, 0
        found = dict(model.named_modules()).get(names.rotary)
        self._module = found if shape.rotated else None
        by_kind = found is not None and "layer_type" in inspect.signature(found.forward).parameters
        self._kinds = tuple(dict.fromkeys(shape.kinds)) if by_kind else ("",)
        half = shape.rotated // 2
        self._tables = {kind: [torch.empty(positions, half) for _ in range(2)] for kind in self._kinds}

    def addresses(self, layer: int) -> tuple[int | None, int | None]:
        """Return the addresses of a layer's cosines and sines; None for a layer that does not rotate."""
        if not self._shape.rotated or layer in self._shape.unrotated:
            return None, None
        cos, sin = self._tables[self._shape.kinds[layer] if self._kinds != ("",) else ""]
        return cos.data_ptr(), sin.data_ptr()

    def extend(self, length: int) -> None:
        """Make sure that the tables hold this number of positions."""
        while self._known < length and self._shape.rotated:
            first = next(iter(self._tables.values()))[0]
            end = min(self._known + ANGLES_AT_ONCE, len(first))
            for kind, tables in self._tables.items():
                for table, new in zip(tables, self._angles(kind, torch.arange(self._known, end)), strict=True):
                    table[self._known : end] = new
            self._known = end

    def _angles(self, kind: str, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        half = self._shape.rotated // 2
        if self._module is None:
            steps = torch.arange(0, 2 * half, 2, dtype=torch.int64).float() / (2 * half)
            angles = torch.outer(positions.float(), 1.0 / _ROTARY_BASE**steps)
            return angles.cos(), angles.sin()
        like = torch.empty(0, dtype=torch.float32)
        cos, sin = self._module(like, positions[None], *((kind,) if kind else ()))
        if self._shape.pairs:  # each angle is there twice, for a pair
            return cos[0, :, ::2], sin[0, :, ::2]
        return cos[0, :, :half], sin[0, :, :half]


class Structure:
    """Structures that the kernels read, with the tensors that they point to."""

    def __init__(
        self, model: Any, weights: PackedWeights, names: Names, shape: Shape, rotary: Rotary, kept: Sequence[int]
    ):
        """`kept`: number of positions that the cache of each layer holds of a slot."""
        self._kept: list[Any] = []
        self._shape = shape
        layers = [
            self._layer(model, weights, f"{names.layers}.{i}", names, i, rotary)
            for i in range(len(model.get_submodule(names.layers)))
        ]
        self.layers = (LayerStruct * len(layers))(*layers)
        for layer, positions, before in zip(self.layers, kept, accumulate(kept, initial=0), strict=False):
            layer.kept, layer.before = positions, before * shape.kv_heads
        self.embedding_norm = self._norm(model, names.embedding_norm, shape.hidden, plus_one=False)
        self.norm = self._norm(model, names.final, shape.hidden, plus_one=shape.plus_one)
        self.learned = None if names.positions is None else self._positions(model.get_submodule(names.positions))
        self.slopes = self._floats(torch.tensor(shape.slopes)) if shape.slopes else None

    def _layer(
        self, model: Any, weights: PackedWeights, path: str, names: Names, number: int, rotary: Rotary
    ) -> LayerStruct:
        def norm(name: str | None, width: int) -> NormStruct:
            return self._norm(model, name and f"{path}.{name}", width, plus_one=self._shape.plus_one)

        def matrix(name: str) -> MatrixStruct:
            return weights.matrices[f"{path}.{name}"].struct

        shape = self._shape
        cos, sin = rotary.addresses(number)
        layer = model.get_submodule(path)
        experts = submodule(layer, names.experts) is not None
        own = names.of_layer(experts=experts)
        return LayerStruct(
            qkv=matrix(own.qkv[0]),
            output=matrix(own.output),
            up=matrix(own.up[0]) if own.up else MatrixStruct(),
            down=matrix(own.down) if own.up else MatrixStruct(),
            norm=norm(names.norm, shape.hidden),
            q_norm=norm(names.q_norm, shape.heads * shape.head_size),
            k_norm=norm(names.k_norm, shape.kv_heads * shape.head_size),
            after_attention=norm(names.after_attention, shape.hidden),
            mlp_norm=norm(names.mlp_norm, shape.hidden),
            after_mlp=norm(names.after_mlp, shape.hidden),
            **{"cos": cos, "sin": sin, "sinks": names.sinks and self._floats(attrgetter(names.sinks)(layer))},
            experts=self._experts(model, weights, path, names) if experts else None,
            window=shape.windows.get(shape.kinds[number], 0),
        )

    def _experts(self, model: Any, weights: PackedWeights, path: str, names: Names) -> int:
        """Return the address of the structure of a layer's experts."""
        router = self._shape.router
        assert router is not None  # families with experts have one
        layer, gate = model.get_submodule(path), model.get_submodule(f"{path}.{names.router}")
        count, hidden = gate.weight.shape
        # Routers stay in fp32 in every precision: with fewer bits they would choose other experts.
        matrix = Matrix(weights.kernels, "fp32", count, hidden, bias=getattr(gate, "bias", None) is not None)
        matrix.fill(gate.weight)
        if getattr(gate, "bias", None) is not None:
            matrix.fill_bias(gate.bias)
        products = {
            name: [weights.matrices[f"{path}.{names.experts}.{name}.{i}"].struct for i in range(count)]
            for name in PARAMETERS
        }
        up, down = ((MatrixStruct * count)(*structs) for structs in products.values())
        struct = ExpertsStruct(
            count=count,
            **{name: getattr(router, name) for name in _ROUTER_FIELDS},
            router=matrix.struct,
            up=ctypes.addressof(up),
            down=ctypes.addressof(down),
            correction=names.correction and self._floats(attrgetter(names.correction)(layer)),
            shared_gate=names.shared_gate and self._floats(attrgetter(f"{names.shared_gate}.weight")(layer)),
        )
        self._kept += [matrix, up, down, struct]
        return ctypes.addressof(struct)

    def _norm(self, model: Any, name: str | None, width: int, *, plus_one: bool) -> NormStruct:
        """Return the norm of a module over vectors of `width` numbers; its weight tells the size of a head's."""
        if name is None:
            return NormStruct(_NO_NORM)
        module = model.get_submodule(name)
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        size = width if weight is None else weight.numel()
        epsilon = next(getattr(module, name) for name in _EPSILONS if hasattr(module, name))
        return NormStruct(
            kind=_MEAN if self._shape.mean else _RMS,
            size=size,
            epsilon=epsilon,
            weight=None if weight is None else self._floats(weight.detach().float() + (1.0 if plus_one else 0.0)),
            bias=None if bias is None else self._floats(bias),
        )

    def _positions(self, module: nn.Embedding) -> int:
        offset = int(getattr(module, "offset", 0))
        return self._floats(module.weight[offset:])

    def _floats(self, tensor: torch.Tensor) -> int:
        """Return the address of a copy in fp32, which this object keeps."""
        kept = tensor.detach().float().contiguous().clone()
        self._kept.append(kept)
        return int(kept.data_ptr())
