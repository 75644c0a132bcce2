"""Gates of rectifiers against the derivative that torch gives."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from snrecon.networks.rectifiers import let_through, open_gates

KINDS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_tangents_pass_where_the_rectifier_is_open(
    kind: torch.dtype, layout: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(1, 3, 6, 5, generator=generator, dtype=torch.float64)
    value[0, 0, 0] = 0  # closed, as torch has it
    value = value.contiguous(memory_format=layout)
    tangents = torch.randn(4, 3, 6, 5, generator=generator, dtype=torch.float64).to(kind)
    tangents = tangents.contiguous(memory_format=layout)
    expected = torch.func.vmap(
        lambda t: torch.func.jvp(functional.relu, (value[0],), (t.double(),))[1])(tangents)
    found = let_through(tangents, open_gates(value))
    assert found is tangents
    assert found.dtype == kind
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0)
    assert 0.2 < float((found == 0).double().mean()) < 0.8


def test_gates_take_a_byte_and_closed_ones_give_zero() -> None:
    gates = open_gates(torch.tensor([[-1.0, 2.0, float("nan")]]))
    assert gates.element_size() == 1
    tangents = let_through(torch.tensor([[float("inf"), -3.0, float("nan")]]), gates)
    assert tangents.tolist() == [[0.0, -3.0, 0.0]]
