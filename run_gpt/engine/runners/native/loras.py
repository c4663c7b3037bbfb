"""LoRA adapters in the form that the kernels need: by layer and projection, in fp32."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from run_gpt.engine.plan import ScheduledTokens
from run_gpt.engine.runners.lora import PROJECTION, Lora
from run_gpt.engine.runners.native.binding import LANES, LoraLayerStruct, LoraStruct


class NativeLoras:
    """Adapters of a model with `layers` layers."""

    def __init__(self, layers: int):
        self._layers = layers
        self._structs: dict[Lora, tuple[Any, list[torch.Tensor]]] = {}
        """Structures of each adapter, with the tensors that they point to."""

    def add(self, lora: Lora) -> None:
        """Add an adapter. Raises ValueError for a layer that is not one of the seven projections."""
        structs, kept = (LoraLayerStruct * self._layers)(), []
        for path, (a, b) in lora.weights.items():
            match = PROJECTION.fullmatch(path)
            if match is None or a.shape[1] % LANES or b.shape[0] % LANES:
                raise ValueError(
                    f"{path} is not a layer for which the native runner has adapters: use --runner generic"
                )
            parts = [a.float().contiguous(), b.float().T.contiguous()]
            kept += parts
            name = {"o": "output"}.get(match["name"], match["name"])
            addresses = [part.data_ptr() for part in parts]
            setattr(structs[int(match["layer"])], name, LoraStruct(len(a), len(b), a.shape[1], *addresses))
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
