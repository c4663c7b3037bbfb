"""Python calls of the compiled kernels that `kernels.cpp` declares, with checked tensors."""

import ctypes
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import POINTER, c_char, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from run_gpt.engine.runners.native.structs import MatrixStruct, ModelStruct

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu_squared")
"""Activations, in the order of their numbers."""
FORMATS = {
    **{"fp32": 0, "bf16": 1, "bit8": 2, "bit4": 3, "fp16": 4, "q5": 5, "iq4": 6, "q2_k": 7, "q3_k": 8, "q4_k": 9},
    **{"q5_k": 10, "q6_k": 11, "iq4_xs": 12},
}
"""Precisions of a matrix, and their numbers in model.h. From `q5` on they are those of GGUF's own blocks only."""
LANES = 16
"""Number of outputs of a panel."""
GROUP = 32
"""Number of inputs that share a scale in bit8 and bit4."""
ROWS_AT_ONCE = 256
"""Number of outputs of a weight that one thread packs together; whole panels."""
_READ_AT_ONCE = 2**26


_SIGNATURES: dict[str, tuple[Any, Sequence[Any]]] = {
    "context": (c_void_p, [c_int32]),
    "free": (None, [c_void_p]),
    "matrix_bytes": (c_int64, [c_int32] * 3),
    "cache_bytes": (c_int64, [POINTER(ModelStruct)]),
    "pack": (c_float, [c_int32, c_void_p, c_int32, c_int32, c_void_p, c_int32, c_int32]),
    "pack_blocks": (c_int32, [c_int32, c_int32, c_void_p, c_int32, c_int32, c_void_p, c_int32, c_int32]),
    "linear": (None, [c_void_p, POINTER(MatrixStruct), c_void_p, c_int32, c_void_p]),
    "likeliest": (None, [c_void_p, c_void_p, c_int32, c_int32, c_void_p]),
    "choose": (None, [c_void_p, c_void_p, c_int32, c_int32, c_void_p]),
    "unpack": (None, [POINTER(MatrixStruct), c_void_p, c_int32, c_void_p]),
    "reserve": (c_void_p, [c_int64, c_int32]),
    "unreserve": (None, [c_void_p, c_int64]),
    "map": (c_int32, [c_void_p, c_int64, c_int32]),
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

    def __init__(self, library: Path, origin: str = "compiled"):
        """`origin`: words for where the library comes from."""
        self.origin = origin
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
        self._kernels, self._size, self._taken, self._is_file = kernels, size, 0, False
        self.address: int = kernels.reserve(size, dense)
        if not self.address:
            raise MemoryError(f"no address space for {size} bytes")

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self._size

    def view(self) -> memoryview:
        """Return the bytes. They must not be used after the memory itself."""
        return memoryview((c_char * self._size).from_address(self.address)).cast("B")

    def map(self, file: int) -> None:
        """Take the content from an open file, which must be as long; memory of a file can only be read.

        Its pages are shared with other processes where the system maps them as huge pages, without which a step of one
        sequence takes a tenth longer; else the content is copied. Raises OSError.
        """
        self._replace(file)
        if self._huge_bytes() < self._size // 2:
            self.clear()
            view, done = self.view(), 0
            while done < self._size:
                read = os.preadv(file, [view[done : done + _READ_AT_ONCE]], done)
                if not read:
                    raise OSError("the file of the packed weights is cut short")
                done += read

    def clear(self) -> None:
        """Make all bytes zero, and writable. Raises OSError."""
        self._replace(-1)

    @property
    def shared_bytes(self) -> int:
        """Number of bytes that lie in pages of a file."""
        return self._size if self._is_file and self._huge_bytes() else 0

    def _replace(self, file: int) -> None:
        if not self._kernels.map(self.address, self._size, file):
            raise OSError("the system refuses to map the packed weights")
        self._is_file = file >= 0

    def _huge_bytes(self) -> int:
        """Return how many bytes of the file lie in huge pages."""
        mappings = Path("/proc/self/smaps").read_text()
        _, _, found = mappings.partition(f"\n{self.address:08x}-")
        _, _, huge = found.partition("\nFilePmdMapped:")
        return int(huge.split(maxsplit=1)[0]) * 1024 if huge else 0

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
