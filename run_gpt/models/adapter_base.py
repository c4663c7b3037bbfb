"""Model that LoRA adapters are for: its layers, and its own weights where an adapter's file has copies of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from run_gpt.models.gguf_weights import gguf_weights
from run_gpt.models.headers import stored_tensors

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class AdapterBase:
    """Model on this disk, as `read_adapter` needs it."""

    folder: Path
    layers: Mapping[str, bool]
    """Paths of all modules; True for a linear layer that is not the output layer."""
    ties: Mapping[str, str]
    """Names of weights that are others of the model: the output layer's is often the embedding's."""

    @classmethod
    def of(cls, model: Any, folder: Path) -> "AdapterBase":
        """Return the base of a transformers model, whose weights lie in `folder`."""
        output = model.get_output_embeddings()
        layers = {path: _is_linear(module) and module is not output for path, module in model.named_modules() if path}
        return cls(folder, layers, dict(getattr(model, "all_tied_weights_keys", {})))

    def has(self, name: str) -> bool:
        """Return True if the model has a weight of this name."""
        return name.rpartition(".")[0] in self.layers

    def equals(self, name: str, tensor: "torch.Tensor") -> bool:
        """Return True if a tensor is the model's weight of this name, in the type of either that has fewer bits."""
        own = self._weight(name)
        if own is None or own.shape != tensor.shape:
            return False
        shorter = min(own.dtype, tensor.dtype, key=lambda dtype: dtype.itemsize)
        return bool((own.to(shorter) == tensor.to(shorter)).all())

    def _weight(self, name: str) -> "torch.Tensor | None":
        """Return a weight as the files have it, maybe under the name of the one that it is tied to; None: not there."""
        from safetensors import safe_open

        names = [name, self.ties[name]] if name in self.ties else [name]
        if (weights := gguf_weights(self.folder)) is not None:
            return next((weights[one][...] for one in names if one in weights), None)
        held = stored_tensors(self.folder)
        found = next((place for one in names if (place := _place(one, held)) is not None), None)
        if found is None:
            return None
        with safe_open(held[found].file, framework="pt") as opened:
            weight: torch.Tensor = opened.get_tensor(found)
            return weight


def _place(name: str, held: Iterable[str]) -> str | None:
    """Return the name under which files have a weight: some lack the name of the inner model, such as `transformer.`"""
    return next((one for one in held if one == name or name.endswith(f".{one}")), None)


def _is_linear(module: Any) -> bool:
    """Return True for a layer to which "all-linear" applies: `nn.Linear`, a packed one, or GPT-2's Conv1D."""
    return hasattr(module, "out_features") or hasattr(module, "nf")
