"""Weights in GGUF's own quantised blocks: packed as they are, and joined where layers differ in their type."""

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch

from run_gpt.engine.runners.native.binding import FORMATS, LANES, ROWS_AT_ONCE, Matrix
from run_gpt.engine.runners.native.structs import MatrixStruct

BLOCKS = {
    **{"Q4_0": (2, "bit4"), "Q4_1": (3, "bit4"), "Q5_0": (6, "q5"), "Q5_1": (7, "q5"), "Q8_0": (8, "bit8")},
    **{"Q2_K": (10, "q2_k"), "Q3_K": (11, "q3_k"), "Q4_K": (12, "q4_k"), "Q5_K": (13, "q5_k"), "Q6_K": (14, "q6_k")},
    **{"IQ4_NL": (20, "iq4"), "IQ4_XS": (23, "iq4_xs")},
}
"""Types of GGUF's blocks: their numbers there, and the precision that holds each of their weights as it is."""
_TWO_SCALES = ("q2_k", "q3_k", "q6_k")
"""Precisions with a scale for each 16 inputs, which need more of their inputs' sums."""


class Blocks(Protocol):
    """Weight in a GGUF file's own blocks, which a loader gives in place of a tensor: see `PackedWeights.holds`."""

    shape: tuple[int, ...]
    kind: str
    """Type of the blocks, one of BLOCKS."""

    def blocks(self) -> Any:
        """Return its rows as they are in the file, in the order of its outputs: uint8 [outputs, bytes]."""


def pack_blocks(matrix: Matrix, kind: str, rows: Any, *, panel: int = 0, step: int = 1) -> None:
    """Pack rows of blocks of type `kind` into `matrix`, each weight as it is; see `Matrix.fill`.

    rows: uint8 array [outputs, bytes of a row]. Raises ValueError if the matrix's precision does not hold that type.
    """
    number, _ = BLOCKS[kind]
    struct, pack = matrix.struct, matrix.kernels.pack_blocks

    def pack_part(start: int) -> bool:
        part = rows[start : start + ROWS_AT_ONCE]
        part = part if part.flags.c_contiguous else part.copy()
        first = panel + start // LANES * step
        return bool(pack(struct.format, number, part.ctypes.data, len(part), matrix.inputs, struct.data, first, step))

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        if not all(threads.map(pack_part, range(0, len(rows), ROWS_AT_ONCE))):
            raise ValueError(f"a matrix in {matrix.precision} with {matrix.inputs} inputs does not hold {kind}")


class JoinedMatrix(Matrix):
    """Matrices of the same inputs, in several quantised precisions, as one; their outputs follow each other."""

    def __init__(self, parts: Sequence[Matrix]):
        """Join `parts`, which stay filled one by one. All but the last have whole panels."""
        self.parts, self.kernels = parts, parts[0].kernels
        lead = next((part for part in parts if part.precision in _TWO_SCALES), parts[0])
        self.precision, self.inputs, self.error = lead.precision, lead.inputs, 0.0
        self.outputs = sum(part.outputs for part in parts)
        self._structs = (MatrixStruct * len(parts))(*(part.struct for part in parts))
        self.struct = MatrixStruct(
            FORMATS[lead.precision],
            self.outputs,
            self.inputs,
            parts[0].struct.data,
            None,
            ctypes.addressof(self._structs),
        )
