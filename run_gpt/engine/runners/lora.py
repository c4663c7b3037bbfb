"""LoRA adapters (Hu et al. 2021) beside a model's weights: low-rank additions to its linear layers, row by row."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from run_gpt.process.devices import input_device

Rows = Sequence["Lora | None"]


@dataclass(frozen=True, eq=False)
class Lora:
    """One adapter. It is known by identity: another one under the same name is another one."""

    name: str
    weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    """By the path of a linear layer in the transformers model: A [rank, inputs] and B [outputs, rank], in fp32, with
    the scale in B. The layer gives x W^T + (x A^T) B^T."""


class Adapters:
    """The adapters of one transformers model, added by hooks on the layers that they target.

    A row without an adapter is computed as it always was. What rows a call of the model has is told by `rows`, for the
    thread that makes the call.
    """

    def __init__(self, model: Any):
        self._model = model
        self._weights: dict[Lora, Mapping[str, tuple[torch.Tensor, torch.Tensor]]] = {}
        self._hooks: dict[str, tuple[nn.Module, Any]] = {}
        """By path, the layer that is hooked, and the hook."""
        self._current = threading.local()

    def add(self, lora: Lora) -> None:
        """Let rows have this adapter. Raises ValueError if a layer is not there, or has another shape."""
        self._check(lora)
        device = input_device(self._model)
        self._weights[lora] = {path: (a.to(device), b.to(device)) for path, (a, b) in lora.weights.items()}
        self.refresh()

    def _check(self, lora: Lora) -> None:
        for path, (a, b) in lora.weights.items():
            outputs, inputs = self._shape(path)
            if a.shape[0] != b.shape[1]:
                raise ValueError(f"{path} has an A of rank {a.shape[0]} and a B of rank {b.shape[1]}")
            if (b.shape[0], a.shape[1]) != (outputs, inputs):
                raise ValueError(
                    f"{path} has {inputs} inputs and {outputs} outputs, the adapter's has {a.shape[1]} and {b.shape[0]}"
                )

    def remove(self, lora: Lora) -> None:
        """Forget this adapter, which no row has any more."""
        del self._weights[lora]
        self.refresh()

    def refresh(self) -> None:
        """Hook the layers that stand in the model now: one may have been replaced.

        A hook that is still right stays as it is: beam search may be in the middle of a pass, in a thread of its own.
        """
        layers = {path: self._model.get_submodule(path) for lora in self._weights for path in lora.weights}
        for path, (layer, hook) in list(self._hooks.items()):
            if layers.get(path) is not layer:
                hook.remove()
                del self._hooks[path]
        for path in layers.keys() - self._hooks.keys():
            self._hooks[path] = layers[path], layers[path].register_forward_hook(self._hook(path))

    @contextmanager
    def rows(self, loras: Rows) -> Iterator[None]:
        """Within: inputs of layers are these rows, one after the other, each with as many tokens as the others."""
        self._current.loras = loras if any(loras) else None
        try:
            yield
        finally:
            self._current.loras = None

    @property
    def active(self) -> bool:
        """Whether a row of the current call has an adapter."""
        return getattr(self._current, "loras", None) is not None

    def __call__(self, path: str, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """`out` [..., outputs], what the layer at `path` gives for `x` [..., inputs], with what rows' adapters add."""
        loras: Rows | None = getattr(self._current, "loras", None)
        if loras is None:
            return out
        places: dict[Lora, list[int]] = {}
        for row, lora in enumerate(loras):
            if lora is not None and path in self._weights.get(lora, ()):
                places.setdefault(lora, []).append(row)
        if not places:
            return out
        inputs, sums = x.reshape(len(loras), -1, x.shape[-1]), out.reshape(len(loras), -1, out.shape[-1]).clone()
        for lora, rows in places.items():
            a, b = (weight.to(x.device) for weight in self._weights[lora][path])
            sums[rows] += (inputs[rows].float() @ a.T @ b.T).to(out.dtype)
        return sums.reshape(out.shape)

    def _hook(self, path: str) -> Any:
        def add(module: nn.Module, arguments: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
            return self(path, arguments[0], out)

        return add

    def _shape(self, path: str) -> tuple[int, int]:
        """Outputs and inputs of a linear layer."""
        try:
            module: Any = self._model.get_submodule(path)
        except AttributeError as error:
            raise ValueError(f"this model has no layer {path}") from error
        if isinstance(module, Conv1D):
            return int(module.weight.shape[1]), int(module.weight.shape[0])
        if not hasattr(module, "out_features") or not hasattr(module, "in_features"):
            raise ValueError(f"{path} is no linear layer")
        return int(module.out_features), int(module.in_features)
