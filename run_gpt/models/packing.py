"""Hands a model's weights to a packer one by one while transformers loads them: they are never all in memory."""

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
    """Holds weights in a form of its own. The order: `prepare`, `replace`, `pack` again and again, `settle`."""

    precision: str
    """One of config.PRECISIONS, never `auto`."""

    def prepare(self, model: Any) -> None:
        """Take room for the weights of a model, which is on the meta device."""

    def replace(self, model: Any) -> None:
        """Put the packer's own modules into the model, with parameters of the same names and shapes."""

    def takes(self, name: str) -> bool:
        """Whether this parameter is packed."""

    def pack(self, name: str, weight: torch.Tensor) -> None:
        """Fill in a parameter; of a tensor it uses shape, dim and slices. Raises ValueError for a wrong shape."""

    def settle(self) -> None:
        """All is filled in."""


class PackingConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What `from_pretrained` takes as its `quantization_config` in order to give the weights to `packer`."""

    def __init__(self, packer: Packer, folder: Path):
        """`folder`: of the weights; what has been read of its files leaves the memory at once."""
        self.quant_method = _METHOD
        self.packer, self.pages = packer, _MappedFiles(folder)
        self.error: Exception | None = None
        """The first of a weight that could not be packed: transformers logs it and goes on."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "PackingConfig":
        return self  # transformers copies configurations, and a packer is one with its memory

    def to_dict(self) -> dict[str, Any]:
        """What is shown of it."""
        return {"quant_method": _METHOD, "precision": self.packer.precision}


@register_quantizer(_METHOD)
class _Quantizer(HfQuantizer):  # type: ignore[misc]
    """Transformers' name for what replaces modules and converts weights while it loads."""

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
    """Gives weights to the packer; what transformers goes on with is empty."""

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
    """The safetensors files of a folder, which the library maps into memory as a whole.

    A page that was read stays in this process's memory until the file is closed; all of them would be the whole model.
    """

    def __init__(self, folder: Path):
        self._files = {file.resolve() for file in folder.glob("*.safetensors")}  # the hub's cache has links
        self._ranges: list[tuple[int, int]] | None = None

    def forget(self, tensor: torch.Tensor) -> None:
        """Let go of the pages under a tensor that lies in one of the files; they would be read again if need be."""
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
