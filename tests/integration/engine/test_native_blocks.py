"""Without these tests, weights in a GGUF file's own bits could differ from those of the file."""

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from gguf_files import random_blocks

from run_gpt.engine.runners.native.binding import Context, Kernels, Matrix
from run_gpt.engine.runners.native.blocks import BLOCKS, JoinedMatrix, pack_blocks
from run_gpt.engine.runners.native.build import built, unsupported
from run_gpt.models.cache import cache_root
from run_gpt.models.gguf_weights import held_precisions

pytestmark = pytest.mark.skipif(unsupported() is not None, reason=str(unsupported()))
INPUTS = 512


@pytest.fixture(scope="module")
def kernels():
    return Kernels(built(cache_root() / "kernels"))


def blocks_of(kind, outputs):
    """Return the bytes of a weight of this kind, and its numbers as gguf reads them."""
    number = GGMLQuantizationType[kind]
    if kind.endswith("_K") or kind.startswith("IQ4"):
        data = random_blocks(kind, (outputs, INPUTS), seed=outputs)
    else:
        data = quantize(torch.randn(outputs, INPUTS).numpy() * 0.06, number)
    return data, torch.from_numpy(dequantize(data, number).reshape(outputs, INPUTS).copy())


def packed(kernels, kind, data, **options):
    matrix = Matrix(kernels, BLOCKS[kind][1], len(data), INPUTS, **options)
    pack_blocks(matrix, kind, data)
    return matrix


def inputs(rows):
    """Return rows, each with an outlier."""
    x = torch.randn(rows, INPUTS, generator=torch.Generator().manual_seed(rows))
    x[:, 5] = 40
    return x


def close(ours, theirs, relative=0.01):
    return (ours - theirs).norm() <= relative * theirs.norm()


@pytest.mark.parametrize("kind", BLOCKS)
def test_each_weight_is_that_of_the_file(kernels, kind):
    data, weight = blocks_of(kind, 40)
    matrix, context = packed(kernels, kind, data), Context(kernels, 2)
    assert torch.equal(matrix.rows(torch.arange(40)), weight)
    x = inputs(70)
    many = context.linear(matrix, x)
    assert close(many, x @ weight.T)
    for rows in (1, 3, 9, 20):  # a row's result does not depend on the rows beside it
        assert torch.equal(context.linear(matrix, x[:rows]), many[:rows])


@pytest.mark.parametrize("kinds", [("Q4_K", "Q4_K", "Q6_K"), ("Q8_0", "Q5_0", "IQ4_NL")])
def test_layers_of_several_kinds_are_one_matrix(kernels, kinds):
    made = [blocks_of(kind, outputs) for kind, outputs in zip(kinds, (48, 32, 20), strict=True)]
    bias = torch.randn(100)
    parts = [packed(kernels, kind, data, bias=True) for kind, (data, _) in zip(kinds, made, strict=True)]
    for part, own in zip(parts, bias.split([48, 32, 20]), strict=True):
        part.fill_bias(own)
    x, weight = inputs(21), torch.cat([weight for _, weight in made])
    out = Context(kernels, 2).linear(JoinedMatrix(parts), x)
    assert close(out, torch.nn.functional.linear(x, weight, bias))


def test_a_matrix_takes_only_blocks_that_it_holds(kernels):
    data, _ = blocks_of("Q6_K", 16)
    with pytest.raises(ValueError, match="does not hold Q6_K"):
        pack_blocks(Matrix(kernels, "q4_k", 16, INPUTS), "Q6_K", data)


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_loader_names_the_precision_that_holds_a_kind(kind):
    entry = {"shape": [16, INPUTS], "change": "", "parts": [{"type": kind, "bytes": 1}]}
    assert held_precisions({"w": entry})[1] == {"w": BLOCKS[kind][1]}
