"""Weights of a transformers model, packed for the kernels one by one, while they are read or from a whole model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from run_gpt.engine.runners.native.binding import FORMATS, GROUP, LANES, Context, Kernels, Matrix, Memory
from run_gpt.engine.runners.native.blocks import BLOCKS, Blocks, JoinedMatrix, pack_blocks
from run_gpt.engine.runners.native.families import family_of, shape_of
from run_gpt.engine.runners.native.groups import PLAIN, Group
from run_gpt.engine.runners.native.inspection import (
    ExpertSizes,
    embedding_scale,
    expert_sizes,
    linear_shape,
    outer_names,
    submodule,
)
from run_gpt.engine.runners.native.modules import Packed, PackedEmbedding, PackedLinear
from run_gpt.engine.runners.native.packed_experts import (
    PARAMETERS,
    PackedExperts,
    Stacked,
    expert_matrices,
    expert_places,
)

_ROUTERS = ("gate", "router")
"""Small layers that choose experts. They are not packed: with fewer bits they would choose other experts."""


@dataclass(frozen=True)
class _Place:
    """Place of a parameter in a matrix."""

    matrix: Matrix
    shape: tuple[int, ...]
    """Shape of the parameter."""
    panel: int = 0
    step: int = 1
    start: int = 0
    """First output of a bias."""
    transposed: bool = False
    order: Any = None


class KeptWeights(Protocol):
    """Packed weights of an earlier start, or a place for those of this one."""

    def restore(self, memory: Memory) -> bool:
        """Put the weights into `memory`, if there are any, and return True."""

    def keep(self, memory: Memory) -> None:
        """Keep the weights for the next start."""


class PackedWeights:
    """Matrices of a model. Call `prepare`, then `pack` for each parameter that it `takes`, then `settle`.

    Without `joined`, the linear layers, embeddings and experts of any model are packed separately, if their sizes allow
    it. With `joined`, the layers of a family that the native runner knows are packed, and those with the same input
    become one matrix; the native runner needs this.
    """

    def __init__(
        self,
        kernels: Kernels,
        precision: str,
        *,
        own: Mapping[str, str] | None = None,
        joined: bool = True,
        kept: KeptWeights | None = None,
    ):
        """`precision`: one of FORMATS. In bit4 the embedding and the output layer are bit8: they lose much in 4 bits,
        and are a small part of a model. `own`: precisions by parameter name, of weights that differ from `precision`.
        `kept`: packed weights of this model in just this form.
        """
        self.kernels, self.precision, self.joined = kernels, precision, joined
        self.matrices: dict[str, Matrix] = {}
        """Matrices by the name of a module; layers that are packed as one share a matrix."""
        self.restored = False
        """True when the matrices are those of an earlier start: then `pack` reads biases only."""
        self._own = own or {}
        self._kept_weights = kept
        self._places: dict[str, _Place | Stacked] = {}
        self._modules: dict[str, Packed] = {}
        # Modules run one at a time: in the generic runner, or in a beam search beside the engine.
        self._context = Context(kernels, torch.get_num_threads())

    def prepare(self, model: Any) -> None:
        """Reserve memory for a model's weights, which may be on the meta device. The model is not changed."""
        outer = outer_names(model)
        groups = [*self._joined(model)] if self.joined else [*self._single(model, outer)]
        groups += self._outer(model, outer)
        experts = {name: one for name, module in model.named_modules() if (one := expert_sizes(module)) is not None}
        sizes = [(p, outputs, group.inputs) for group in groups for p, outputs in group.pieces]
        for name, of in experts.items():
            wide, narrow = (self._own.get(f"{name}.{parameter}", self.precision) for parameter in PARAMETERS)
            sizes += [(wide, 2 * of.width, of.hidden), (narrow, of.hidden, of.width)] * of.count
        # One piece of memory for all weights, because a huge page, which saves a tenth of a single-row step's time, is
        # larger than a layer.
        total = sum(self.kernels.matrix_bytes(FORMATS[p], outputs, inputs) + 64 for p, outputs, inputs in sizes)
        self._memory = Memory(self.kernels, max(total, 1), dense=True)
        for group in groups:
            self._place(model, group, self._memory)
        for name, of in experts.items():
            self._place_experts(model, name, of)
        self.restored = self._kept_weights is not None and self._kept_weights.restore(self._memory)
        for target, source in getattr(model, "all_tied_weights_keys", {}).items():
            if source in self._places and target not in self._places:
                self._tie(model, target, source)

    def takes(self, name: str) -> bool:
        """Return True when this parameter is packed."""
        return name in self._places

    def holds(self, name: str, kind: str) -> bool:
        """Return True when `pack` takes this parameter as Blocks of GGUF's type `kind`."""
        place = self._places.get(name)
        own = BLOCKS.get(kind, (0, ""))[1]
        return isinstance(place, _Place) and len(place.shape) == 2 and own == place.matrix.precision

    def pack(self, name: str, weight: Any) -> None:
        """Pack a parameter: a tensor, or Blocks that it `holds`. Raises ValueError if its shape is not the model's."""
        place = self._places[name]
        if tuple(weight.shape) != place.shape:
            raise ValueError(
                f"{name} has the shape {list(weight.shape)}, and the configuration says {list(place.shape)}"
            )
        if isinstance(place, Stacked):
            place.pack(weight, restored=self.restored)
        elif self.restored and len(place.shape) > 1:
            return
        elif self.holds(name, getattr(weight, "kind", "")):
            assert isinstance(place, _Place)
            self._pack_blocks(place, weight)
        elif weight.dim() == 1:
            place.matrix.fill_bias(weight if place.order is None else weight[place.order], start=place.start)
        elif not self.restored:
            rows = weight.T if place.transposed else weight
            place.matrix.fill(rows if place.order is None else rows[place.order], panel=place.panel, step=place.step)

    def _pack_blocks(self, place: _Place, weight: Blocks) -> None:
        rows = weight.blocks()
        rows = rows if place.order is None else rows[place.order.numpy()]
        pack_blocks(place.matrix, weight.kind, rows, panel=place.panel, step=place.step)

    def replace(self, model: Any) -> None:
        """Make the model's own forward pass use the packed weights; the original ones, if loaded, are freed."""
        for name, module in self._modules.items():
            model.set_submodule(name, module)
        for parameter in model.parameters():  # norms and others: views of a file that would stay mapped
            parameter.data = parameter.detach().clone()
        if model.config.model_type == "rwkv":
            model.config.rescale_every = 0  # it would divide weights, which only fp16 needs
        self.kernels.trim()

    def settle(self) -> None:
        """Drop the parameters' own data, once all are packed."""
        for module in self._modules.values():
            module.settle()

    def keep(self) -> None:
        """Keep the weights for the next start, once a loader has found all of them right."""
        if self._kept_weights is not None and not self.restored:
            self._kept_weights.keep(self._memory)

    @property
    def shared_bytes(self) -> int:
        """See models.packing.Packer."""
        return self._memory.shared_bytes

    @classmethod
    def of(cls, model: Any, kernels: Kernels, precision: str) -> "PackedWeights":
        """Pack the weights of a loaded model, joined. The model keeps its own weights until `replace`."""
        packed = cls(kernels, precision)
        packed.prepare(model)
        for name in packed._places:
            packed.pack(name, model.get_parameter(name))
        packed.settle()
        return packed

    def _joined(self, model: Any) -> "Sequence[Group]":
        family, shape = family_of(model.config), shape_of(model.config)
        assert family is not None
        assert shape is not None
        names, groups = family.names(model.config), []
        for i in range(len(model.get_submodule(names.layers))):
            path = f"{names.layers}.{i}"
            of_layer = names.of_layer(experts=submodule(model, f"{path}.{names.experts}") is not None)
            for joined in of_layer.linear:
                order = {names.qkv: shape.qkv_order, of_layer.up: shape.up_order}.get(joined)
                full = tuple(f"{path}.{name}" for name in joined)
                modules = tuple(model.get_submodule(name) for name in full)
                interleaved = joined == of_layer.up and len(joined) == 2
                precisions = self._precisions_of(full)
                groups.append(Group(full, modules, precisions, interleaved=interleaved, order=order))
        return groups

    def _single(self, model: Any, outer: set[str]) -> "Sequence[Group]":
        return [
            Group((name,), (module,), self._precisions_of((name,)))
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D)
            and name not in outer
            and name.rpartition(".")[2] not in _ROUTERS
            and linear_shape(module)[1] % GROUP == 0
        ]

    def _outer(self, model: Any, outer: set[str]) -> "Sequence[Group]":
        """Return the groups of the embedding and the output layer; only one of them if they are tied."""
        inner = "bit8" if self.precision == "bit4" else self.precision
        tied = {target.removesuffix(".weight") for target in getattr(model, "all_tied_weights_keys", {})}
        modules = {name: model.get_submodule(name) for name in sorted(outer - tied)}
        return [
            Group((name,), (module,), (self._own.get(f"{name}.weight", inner),))
            for name, module in modules.items()
            if linear_shape(module)[1] % GROUP == 0
            and (isinstance(module, nn.Linear) or embedding_scale(module) is not None)
        ]

    def _precisions_of(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the precisions of layers with the same input: if one is plain, the best of the plain ones for all."""
        own = tuple(self._own.get(f"{name}.weight", self.precision) for name in names)
        plain = [precision for precision in PLAIN if precision in own]
        return (plain[0],) * len(own) if plain else own

    def _place(self, model: Any, group: Group, memory: Memory) -> None:
        biased = any(getattr(module, "bias", None) is not None for module in group.modules)
        outputs = group.outputs
        pieces = [
            Matrix(self.kernels, precision, count, group.inputs, bias=biased, memory=memory)
            for precision, count in group.pieces
        ]
        matrix, start = pieces[0] if len(pieces) == 1 else JoinedMatrix(pieces), 0
        interleaved = group.interleaved and len(pieces) == 1
        for i, (name, module, count) in enumerate(zip(group.names, group.modules, outputs, strict=True)):
            panel, step = (i, len(outputs)) if interleaved else (start // LANES, 1)
            own, first = (matrix, start) if len(pieces) == 1 else (pieces[i], 0)
            shape, transposed = tuple(module.weight.shape), isinstance(module, Conv1D)
            self.matrices[name] = matrix
            self._places[f"{name}.weight"] = _Place(
                own, shape, panel if own is matrix else 0, step, transposed=transposed, order=group.order
            )
            self._modules[name] = self._module(
                module, matrix, i if interleaved else start, count, interleaved=interleaved, order=group.order
            )
            if getattr(module, "bias", None) is not None:
                self._places[f"{name}.bias"] = _Place(own, tuple(module.bias.shape), start=first, order=group.order)
            start += count

    def _module(
        self, module: Any, matrix: Matrix, start: int, outputs: int, *, interleaved: bool = False, order: Any = None
    ) -> Packed:
        packed: Packed
        if isinstance(module, nn.Embedding):
            packed = PackedEmbedding(matrix, outputs, embedding_scale(module) or 1.0)
        else:
            packed = PackedLinear(self._context, matrix, start, outputs, interleaved=interleaved, order=order)
        for name, parameter in module.named_parameters(recurse=False):
            packed.stand_in(name, parameter.shape, parameter.dtype)
        return packed

    def _place_experts(self, model: Any, name: str, sizes: ExpertSizes) -> None:
        module = model.get_submodule(name)
        precisions = {parameter: self._own.get(f"{name}.{parameter}", self.precision) for parameter in PARAMETERS}
        made = expert_matrices(sizes, precisions, self._memory, self.kernels)
        for parameter in PARAMETERS:
            self.matrices.update({f"{name}.{parameter}.{i}": matrix for i, matrix in enumerate(made[parameter])})
        places = expert_places(module, sizes, made)
        self._places.update({f"{name}.{parameter}": place for parameter, place in places.items()})
        self._modules[name] = PackedExperts(self._context, module, made)

    def _tie(self, model: Any, target: str, source: str) -> None:
        """Let the tied parameter `target` share the matrix of `source`."""
        name, place = target.removesuffix(".weight"), self._places[source]
        assert isinstance(place, _Place)
        module = model.get_submodule(name)
        self.matrices[name], self._places[target] = place.matrix, place
        self._modules[name] = self._module(module, place.matrix, 0, place.matrix.outputs)
