"""Packing of weights during loading: transformers hands them over one by one, so they are never all in memory."""

import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

_METHOD = "rungpt"
_DONTNEED = 4  # MADV_DONTNEED of Linux


class Packer(Protocol):
    """Object that stores weights in its own form. Order of calls: `prepare`, `replace`, `pack` repeatedly, `settle`."""

    precision: str
    """Precision of the packed weights: one of config.PRECISIONS, never `auto`."""
    restored: bool
    """True when the matrices are known from an earlier start: `pack` reads biases only. `prepare` decides it."""

    def prepare(self, model: Any) -> None:
        """Reserve memory for the weights of a model, which is on the meta device."""

    def replace(self, model: Any) -> None:
        """Put the packer's own modules into the model, with parameters of the same names and shapes."""

    def takes(self, name: str) -> bool:
        """Return True if this parameter is packed."""

    def holds(self, name: str, kind: str) -> bool:
        """Return True if `pack` takes this parameter as a GgufTensor with blocks of type `kind`."""

    def pack(self, name: str, weight: Any) -> None:
        """Store a parameter. Only shape, dim and slices of the tensor are used. Raises ValueError for a wrong shape."""

    def settle(self) -> None:
        """Finish: all parameters have been packed."""

    @property
    def shared_bytes(self) -> int:
        """Number of bytes of the weights that lie in pages of a file, which the system counts as free memory."""

    def keep(self) -> None:
        """Keep the packed weights for the next start, once all are known to be right."""


class PackingConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The `quantization_config` with which `from_pretrained` gives the weights to `packer`."""

    def __init__(self, packer: Packer, folder: Path):
        """Create the configuration. `folder` holds the weights; its pages leave the memory once they have been read."""
        self.quant_method = _METHOD
        self.packer, self.pages = packer, _MappedFiles(folder)
        self.error: Exception | None = None
        """First error of a weight that could not be packed: transformers only logs it and goes on."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "PackingConfig":
        return self  # transformers copies configurations, and a packer must not be copied with its memory

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that transformers shows."""
        return {"quant_method": _METHOD, "precision": self.packer.precision}


@register_quantizer(_METHOD)
class _Quantizer(HfQuantizer):  # type: ignore[misc]
    """Quantizer: transformers' name for an object that replaces modules and converts weights during loading."""

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        self.quantization_config.packer.prepare(model)
        self.quantization_config.packer.replace(model)
        return model

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        return bool(self.quantization_config.packer.takes(param_name))

    def get_quantize_ops(self) -> "_Pack":
        return _Pack(self.quantization_config)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        self.quantization_config.packer.settle()
        self.quantization_config.packer.replace(model)
        self.remove_quantization_config(model)
        return model

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


class _Pack(ConversionOps):  # type: ignore[misc]
    """Conversion that gives weights to the packer and returns empty tensors to transformers."""

    def __init__(self, config: PackingConfig):
        self._config = config

    def convert(self, input_dict: dict[str, Any], **_: Any) -> dict[str, torch.Tensor]:
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            try:
                self._config.packer.pack(name, weight)
            except Exception as error:
                self._config.error = self._config.error or error
                raise
            if isinstance(weight, torch.Tensor):
                self._config.pages.forget(weight)
        return {name: torch.empty(0) for name in input_dict}


class _MappedFiles:
    """Safetensors files of a folder. The safetensors library maps each file into memory as a whole.

    A page that was read stays in this process's memory until the file is closed; in the end that is the whole model.
    """

    def __init__(self, folder: Path):
        self._files = {file.resolve() for file in folder.glob("*.safetensors")}  # the hub's cache has links
        self._ranges: list[tuple[int, int]] | None = None

    def forget(self, tensor: torch.Tensor) -> None:
        """Release the pages of a tensor that lies in one of the files; they are read again if they are needed."""
        if self._ranges is None:
            self._ranges = list(self._mapped())
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        if any(first <= start and end <= last for first, last in self._ranges):
            page = mmap.PAGESIZE
            start, end = (start + page - 1) // page * page, end // page * page
            if start < end:
                ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)

    def _mapped(self) -> Iterator[tuple[int, int]]:
        maps = Path("/proc/self/maps")
        for line in maps.read_text().splitlines() if maps.exists() else ():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and Path(fields[5]) in self._files:
                first, last = (int(number, 16) for number in fields[0].split("-"))
                yield first, last
