"""Python calls of the compiled kernels that `kernels.cpp` declares, with checked tensors."""

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from threading import Lock
from typing import Any

import torch

FORMATS = {"fp32": 0, "bf16": 1, "bit8": 2, "bit4": 3, "fp16": 4}
LANES = 16
"""Number of outputs of a panel."""
GROUP = 32
"""Number of inputs that share a scale in bit8 and bit4."""
ROWS_AT_ONCE = 256
"""Number of outputs of a weight that one thread packs together; whole panels."""


class MatrixStruct(Structure):
    """See Matrix in model.h."""

    _fields_ = (
        ("format", c_int32),
        ("outputs", c_int32),
        ("inputs", c_int32),
        ("data", c_void_p),
        ("bias", c_void_p),
    )


class LayerStruct(Structure):
    """See Layer in model.h."""

    _fields_ = (
        *((name, MatrixStruct) for name in ("qkv", "output", "gate_up", "down")),
        *((name, c_void_p) for name in ("norm", "mlp_norm", "q_norm", "k_norm")),
    )


class LoraStruct(Structure):
    """See Lora in model.h."""

    _fields_ = (*((name, c_int32) for name in ("rank", "outputs", "inputs")), ("a", c_void_p), ("b", c_void_p))


class LoraLayerStruct(Structure):
    """See LoraLayer in model.h."""

    _fields_ = tuple((name, LoraStruct) for name in ("q", "k", "v", "output", "gate", "up", "down"))


_SIZES = (
    *("layers", "hidden", "heads", "kv_heads", "head_size", "intermediate", "vocabulary"),
    *("slots", "positions", "bf16_cache"),
)


class ModelStruct(Structure):
    """See Model in model.h."""

    _fields_ = (
        *((name, c_int32) for name in _SIZES),
        ("epsilon", c_float),
        ("attention_scale", c_float),
        ("layer", POINTER(LayerStruct)),
        ("embedding", MatrixStruct),
        ("head", MatrixStruct),
        *((name, c_void_p) for name in ("norm", "cos", "sin", "keys", "values")),
    )


_SIGNATURES: dict[str, tuple[Any, Sequence[Any]]] = {
    "context": (c_void_p, [c_int32]),
    "free": (None, [c_void_p]),
    "matrix_bytes": (c_int64, [c_int32] * 3),
    "cache_bytes": (c_int64, [POINTER(ModelStruct)]),
    "pack": (c_float, [c_int32, c_void_p, c_int32, c_int32, c_void_p, c_int32, c_int32]),
    "linear": (None, [c_void_p, POINTER(MatrixStruct), c_void_p, c_int32, c_void_p]),
    "likeliest": (None, [c_void_p, c_void_p, c_int32, c_int32, c_void_p]),
    "unpack": (None, [POINTER(MatrixStruct), c_void_p, c_int32, c_void_p]),
    "reserve": (c_void_p, [c_int64, c_int32]),
    "unreserve": (None, [c_void_p, c_int64]),
    "trim": (None, []),
    "release": (None, [POINTER(ModelStruct), c_int32]),
    "copy": (None, [POINTER(ModelStruct), c_int32, c_int32, c_int32]),
    "forward": (
        None,
        [
            *(c_void_p, c_int32, POINTER(ModelStruct)),
            *(c_int32, c_void_p, c_void_p, c_void_p, c_void_p),
            *(c_int32, c_void_p, c_void_p),
            *(c_int32, c_void_p, c_void_p),
        ],
    ),
}


class Kernels:
    """Functions of the compiled library, each under its name without `rungpt_`."""

    def __init__(self, library: Path):
        loaded = ctypes.CDLL(str(library))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, f"rungpt_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the kernels have no function {name!r}")


class Memory:
    """Zeroed memory outside of Python's: see rungpt_reserve in kernels.cpp. Raises MemoryError if there is none."""

    def __init__(self, kernels: Kernels, size: int, *, dense: bool):
        self._kernels, self._size, self._taken = kernels, size, 0
        self.address: int = kernels.reserve(size, dense)
        if not self.address:
            raise MemoryError(f"no address space for {size} bytes")

    def take(self, size: int) -> int:
        """Return the address of the next `size` bytes, at a multiple of 64."""
        start, self._taken = self._taken, (self._taken + size + 63) // 64 * 64
        if self._taken > self._size:
            raise MemoryError(f"{self._taken} bytes of {self._size}")
        return self.address + start

    def __del__(self) -> None:
        if getattr(self, "address", None):
            self._kernels.unreserve(self.address, self._size)


class Matrix:
    """Weights of a linear layer in panels; zeros until they are filled in. `error`: the largest error of a weight, as a
    part of the largest number that its group can hold."""

    def __init__(
        self,
        kernels: Kernels,
        precision: str,
        outputs: int,
        inputs: int,
        *,
        bias: bool = False,
        memory: Memory | None = None,
    ):
        """Take space in `memory`, by default in new memory of its own."""
        self.kernels = kernels
        self.precision, self.outputs, self.inputs = precision, outputs, inputs
        self.error = 0.0
        number = FORMATS[precision]
        size = kernels.matrix_bytes(number, outputs, inputs)
        self._memory = memory or Memory(kernels, size + 63, dense=True)
        self._bias: torch.Tensor | None = None
        if bias:  # on the CPU and in fp32, even while transformers loads a model with other defaults for both
            room = (outputs + LANES - 1) // LANES * LANES
            self._bias = torch.zeros(room, dtype=torch.float32, device="cpu")
        self.struct = MatrixStruct(
            number, outputs, inputs, self._memory.take(size), None if self._bias is None else self._bias.data_ptr()
        )

    def fill(self, weight: torch.Tensor, *, panel: int = 0, step: int = 1) -> None:
        """Pack a weight [outputs, inputs] into every `step`th panel from `panel` on; only the last may be incomplete.

        Rows are packed in parts, so that only a few of them are ever held in fp32.
        """

        def pack(start: int) -> float:
            rows = weight[start : start + ROWS_AT_ONCE].detach().float().contiguous()
            first = panel + start // LANES * step
            data = self.struct.data
            error: float = self.kernels.pack(
                self.struct.format, rows.data_ptr(), len(rows), self.inputs, data, first, step
            )
            return error

        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            self.error = max(self.error, *threads.map(pack, range(0, len(weight), ROWS_AT_ONCE)))

    def fill_bias(self, bias: torch.Tensor, *, start: int = 0) -> None:
        """Set the bias of the outputs from `start` on."""
        assert self._bias is not None
        self._bias[start : start + len(bias)] = bias.detach().float()

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Return rows of the weight: [..., inputs] in fp32."""
        flat = indices.reshape(-1).to(torch.int64).contiguous()
        if len(flat) and not 0 <= int(flat.min()) <= int(flat.max()) < self.outputs:
            raise IndexError(f"row {flat.tolist()} of {self.outputs}")
        out = torch.empty(len(flat), self.inputs)
        self.kernels.unpack(self.struct, flat.data_ptr(), len(flat), out.data_ptr())
        return out.view(*indices.shape, self.inputs)


class Context:
    """Threads and scratch memory of the kernels. One caller at a time uses them; others wait."""

    def __init__(self, kernels: Kernels, threads: int):
        self.kernels = kernels
        self.handle = kernels.context(threads)
        self._lock = Lock()

    def __del__(self) -> None:
        self.kernels.free(self.handle)

    def linear(self, matrix: Matrix, x: torch.Tensor) -> torch.Tensor:
        """Apply a linear layer: [..., inputs] -> [..., outputs], in the type of `x`."""
        rows = x.detach().reshape(-1, matrix.inputs).float().contiguous()
        out = torch.empty(len(rows), matrix.outputs)
        with self._lock:
            self.kernels.linear(self.handle, matrix.struct, rows.data_ptr(), len(rows), out.data_ptr())
        return out.view(*x.shape[:-1], matrix.outputs).to(x.dtype)
