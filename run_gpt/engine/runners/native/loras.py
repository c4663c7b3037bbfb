"""LoRA adapters in the form that the kernels need: by layer and projection, in fp32."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from run_gpt.engine.plan import ScheduledTokens
from run_gpt.engine.runners.lora import Lora
from run_gpt.engine.runners.native.binding import LANES
from run_gpt.engine.runners.native.families import Names
from run_gpt.engine.runners.native.shapes import Shape
from run_gpt.engine.runners.native.structs import LoraLayerStruct, LoraStruct


class NativeLoras:
    """Adapters of a model with these names and this shape."""

    def __init__(self, names: Names, shape: Shape):
        self._names, self._layers = names, len(shape.kinds)
        # The kernels' rows of queries, keys and values lie one after the other, and so do those of gate and up: what a
        # joined module adds begins at the first of them.
        gated = len(names.up) == 2 or shape.up_order is not None
        self._parts = {
            **dict(zip(names.qkv, ("q", "k", "v"), strict=False)),
            **dict(zip(names.up, ("gate", "up") if gated else ("up",), strict=False)),
            names.output: "output",
            names.down: "down",
        }
        """Fields of LoraLayerStruct by the name of a module."""
        self._order = shape.qkv_order
        self._structs: dict[Lora, tuple[Any, list[torch.Tensor]]] = {}
        """Structures of each adapter, with the tensors that they point to."""

    def add(self, lora: Lora) -> None:
        """Add an adapter. Raises ValueError for a module that is no linear one of a layer."""
        structs, kept = (LoraLayerStruct * self._layers)(), []
        for path, (a, b) in lora.weights.items():
            place = self._names.layer_of(path)
            if place is None or a.shape[1] % LANES or b.shape[0] % LANES:
                raise ValueError(
                    f"{path} is not a layer for which the native runner has adapters: use --runner generic"
                )
            layer, name = place
            if name in self._names.qkv and self._order is not None:
                b = b[self._order]
            tensors = [a.float().contiguous(), b.float().T.contiguous()]
            kept += tensors
            addresses = [tensor.data_ptr() for tensor in tensors]
            setattr(structs[layer], self._parts[name], LoraStruct(len(a), len(b), a.shape[1], *addresses))
        self._structs[lora] = structs, kept

    def remove(self, lora: Lora) -> None:
        """Free the memory of an adapter."""
        del self._structs[lora]

    def of_tokens(self, runs: Sequence[ScheduledTokens]) -> Any:
        """Return the address of the adapter of each token of the runs, or null; None if no token has one."""
        if not any(run.adapter for run in runs):
            return None
        addresses = [self._address(run.adapter) for run in runs for _ in run.token_ids]
        return (ctypes.c_void_p * len(addresses))(*addresses)

    def _address(self, lora: Lora | None) -> int | None:
        return None if lora is None else ctypes.addressof(self._structs[lora][0])
