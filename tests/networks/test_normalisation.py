"""Normalisations against torch's own, and under torch.func."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from snrecon.networks.normalisation import InstanceNorm, channels_go_last, channels_last


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 8, 6), (1, 1, 5, 7), (3, 4, 1, 2)])
def test_instance_norm_is_torchs(shape: tuple[int, ...], last: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    x = 5 + torch.randn(shape, dtype=torch.float64, generator=generator)
    x = channels_last(x) if last else x
    norm, theirs = InstanceNorm(shape[1]), nn.InstanceNorm2d(shape[1])
    torch.testing.assert_close(norm(x), theirs(x), rtol=1e-12, atol=1e-12)
    tangent = torch.randn(shape, dtype=torch.float64, generator=generator)
    _, found = torch.func.jvp(norm, (x,), (tangent,))
    _, wanted = torch.func.jvp(theirs, (x,), (tangent,))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    (pulled,), (expected,) = (torch.func.vjp(f, x)[1](tangent) for f in (norm, theirs))
    torch.testing.assert_close(pulled, expected, rtol=1e-10, atol=1e-10)
    both = torch.stack([x, tangent])
    torch.testing.assert_close(
        torch.func.vmap(norm)(both), torch.stack([theirs(one) for one in both]))


def test_instance_norm_loses_no_digits_to_a_large_mean() -> None:
    x = 1e4 + torch.randn(1, 2, 32, 32, generator=torch.Generator().manual_seed(1))
    norm = InstanceNorm(2)
    torch.testing.assert_close(norm(x), norm(x.double()).float(), rtol=0, atol=2e-3)


def test_instance_norm_of_half_precision_is_torchs() -> None:
    x = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(InstanceNorm(2)(x), nn.InstanceNorm2d(2)(x))


def test_instance_norm_leaves_a_constant_at_zero_and_a_single_voxel_to_torch() -> None:
    norm = InstanceNorm(2)
    assert torch.equal(norm(torch.full((1, 2, 4, 4), 3.0)), torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match="spatial"):
        norm(torch.ones(1, 2, 1, 1))


def test_channels_go_last_where_no_graph_is_kept() -> None:
    x = torch.ones(1, 2, 3, 4)
    assert channels_go_last(x)
    graph = x.clone().requires_grad_()
    assert not channels_go_last(graph)
    with torch.no_grad():
        assert channels_go_last(graph)
    moved = channels_last(x)
    assert moved.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(moved, x)
    weight = torch.ones(2, 2, 3, 3)
    torch.testing.assert_close(functional.conv2d(moved, weight), functional.conv2d(x, weight))
