"""LoRA adapters (Hu et al. 2021) beside a model's weights: low-rank additions to linear layers, chosen per row."""

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
    """LoRA adapter. Adapters are compared by identity: two with the same name are different."""

    name: str
    weights: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    """Matrices A [rank, inputs] and B [outputs, rank] by the path of a layer in the transformers model; in fp32, with
    the scale in B. A linear layer computes x W^T + (x A^T) B^T. An embedding's inputs are its rows, one-hot."""


class Adapters:
    """Adapters of one transformers model, added by hooks on their target layers.

    A row without an adapter is computed without any change. `rows` sets the rows of a model call, for the calling
    thread.
    """

    def __init__(self, model: Any):
        self._model = model
        self._weights: dict[Lora, Mapping[str, tuple[torch.Tensor, torch.Tensor]]] = {}
        self._hooks: dict[str, tuple[nn.Module, Any]] = {}
        """Hooked layers and their hooks, by path."""
        self._current = threading.local()

    def add(self, lora: Lora) -> None:
        """Add an adapter that rows may use. Raises ValueError if a layer does not exist, or has another shape."""
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
        """Remove this adapter. No sequence uses it any more."""
        del self._weights[lora]
        self.refresh()

    def refresh(self) -> None:
        """Hook the model's current layers; some may have been replaced.

        A hook that is still valid stays in place, because beam search may be within a pass, in a separate thread.
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
        """Set the adapters of the rows of model calls within the block. All rows have the same number of tokens."""
        self._current.loras = loras if any(loras) else None
        try:
            yield
        finally:
            self._current.loras = None

    @property
    def active(self) -> bool:
        """True when a row of the current call has an adapter."""
        return getattr(self._current, "loras", None) is not None

    def __call__(
        self, path: str, x: torch.Tensor, out: torch.Tensor, *, scale: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return `out` [..., outputs] of the layer at `path` for `x` [..., inputs], plus the adapters' additions.

        `scale`: factor of an embedding's output, whose `x` are token ids [...]; None: a linear layer.
        """
        loras: Rows | None = getattr(self._current, "loras", None)
        if loras is None:
            return out
        places: dict[Lora, list[int]] = {}
        for row, lora in enumerate(loras):
            if lora is not None and path in self._weights.get(lora, ()):
                places.setdefault(lora, []).append(row)
        if not places:
            return out
        sums = out.reshape(len(loras), -1, out.shape[-1]).clone()
        inputs = x.reshape(*sums.shape[:2], *x.shape[out.dim() - 1 :])
        for lora, rows in places.items():
            a, b = (weight.to(x.device) for weight in self._weights[lora][path])
            inner = inputs[rows].float() @ a.T if scale is None else a.T[inputs[rows]] * scale
            sums[rows] += (inner @ b.T).to(out.dtype)
        return sums.reshape(out.shape)

    def _hook(self, path: str) -> Any:
        def add(module: nn.Module, arguments: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
            scale = getattr(module, "embed_scale", 1.0) if not arguments[0].is_floating_point() else None
            return self(path, arguments[0], out, scale=scale)

        return add

    def _shape(self, path: str) -> tuple[int, int]:
        """Return the numbers of outputs and inputs of a linear layer, or of an embedding, whose inputs are its rows."""
        try:
            module: Any = self._model.get_submodule(path)
        except AttributeError as error:
            raise ValueError(f"this model has no layer {path}") from error
        if isinstance(module, Conv1D):
            return int(module.weight.shape[1]), int(module.weight.shape[0])
        if module is self._model.get_input_embeddings():
            return int(module.embedding_dim), int(module.num_embeddings)
        if not hasattr(module, "out_features") or not hasattr(module, "in_features"):
            raise ValueError(f"{path} is no linear layer, and not the embedding of tokens")
        return int(module.out_features), int(module.in_features)
