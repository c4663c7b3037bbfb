"""Without these tests a packed layer could give other results than the layer that it replaces."""

import pytest
import torch
from torch import nn

from run_gpt.engine.runners.packed import PackedLinear, can_pack, joined_linear


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 70])
def test_joined_layers_give_what_each_gave(bias, rows):
    torch.manual_seed(0)
    parts = [nn.Linear(48, size, bias=bias) for size in (32, 16, 16)]
    x = torch.randn(rows, 48)
    with torch.inference_mode():
        expected = [part(x) for part in parts]
        joined, places = joined_linear(parts)
        torch.testing.assert_close(joined(x), torch.cat(expected, dim=-1))
        for place, values in zip(places, expected, strict=True):
            torch.testing.assert_close(place(x), values)


def test_a_batch_of_rows_keeps_its_shape():
    layer = nn.Linear(8, 4, bias=False)
    x = torch.randn(2, 3, 8)
    with torch.inference_mode():
        _, [packed] = joined_linear([layer])
        torch.testing.assert_close(packed(x), layer(x))


def test_only_what_the_kernels_read_is_packed():
    assert isinstance(joined_linear([nn.Linear(8, 4)])[0], PackedLinear) == can_pack(torch.empty(4, 8))
    assert not can_pack(torch.empty(4, 8, dtype=torch.float64))
    assert not can_pack(torch.empty(4, 8, device="meta"))
