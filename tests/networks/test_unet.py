"""fastMRI's U-Net: names and shapes, values, derivatives, sizes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from derivatives import check_derivatives, check_linearization, draw
from snrecon.networks.unet import (
    Unet,
    complex_unet,
    linearize_complex_unet,
    linearize_magnitude_unet,
    magnitude_unet,
)


def network(channels: int = 2, chans: int = 3, pools: int = 2) -> Unet:
    torch.manual_seed(5)
    return Unet(channels, channels, chans, pools).double().requires_grad_(False)


def published_shapes(inputs: int, outputs: int, chans: int, pools: int) -> dict[str, tuple]:
    """Parameter names and shapes of the published network, from its description."""
    shapes = {}
    wide = [chans * 2**i for i in range(pools)]
    for i, (before, after) in enumerate(zip([inputs, *wide], wide)):
        shapes[f"down_sample_layers.{i}.layers.0.weight"] = (after, before, 3, 3)
        shapes[f"down_sample_layers.{i}.layers.4.weight"] = (after, after, 3, 3)
    shapes["conv.layers.0.weight"] = (2 * wide[-1], wide[-1], 3, 3)
    shapes["conv.layers.4.weight"] = (2 * wide[-1], 2 * wide[-1], 3, 3)
    for i, ch in enumerate(reversed(wide)):
        inner = "0." if i == pools - 1 else ""
        shapes[f"up_transpose_conv.{i}.layers.0.weight"] = (2 * ch, ch, 2, 2)
        shapes[f"up_conv.{i}.{inner}layers.0.weight"] = (ch, 2 * ch, 3, 3)
        shapes[f"up_conv.{i}.{inner}layers.4.weight"] = (ch, ch, 3, 3)
    shapes[f"up_conv.{pools - 1}.1.weight"] = (outputs, chans, 1, 1)
    shapes[f"up_conv.{pools - 1}.1.bias"] = (outputs,)
    return shapes


def by_hand(state: dict[str, torch.Tensor], x: torch.Tensor, pools: int) -> torch.Tensor:
    """The network from its weights alone, with every operation spelt out."""

    def rectified(y: torch.Tensor) -> torch.Tensor:
        mean = y.mean((-2, -1), keepdim=True)
        variance = ((y - mean) ** 2).mean((-2, -1), keepdim=True)
        y = (y - mean) / (variance + 1e-5).sqrt()
        return torch.where(y > 0, y, 0.2 * y)

    def twice(y: torch.Tensor, name: str) -> torch.Tensor:
        for layer in (0, 4):
            weight = state[f"{name}.layers.{layer}.weight"]
            y = rectified(functional.conv2d(y, weight, padding=1))
        return y

    kept = []
    for i in range(pools):
        x = twice(x, f"down_sample_layers.{i}")
        kept.append(x)
        rows, columns = (n // 2 * 2 for n in x.shape[-2:])
        x = x[..., :rows, :columns]
        x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    x = twice(x, "conv")
    for i in range(pools):
        weight = state[f"up_transpose_conv.{i}.layers.0.weight"]
        up = torch.einsum("bcyx,cdij->bdyixj", x, weight)
        x = rectified(up.flatten(-2).flatten(-3, -2))
        skip = kept.pop()
        missing = [a - b for a, b in zip(skip.shape[-2:], x.shape[-2:])]
        x = functional.pad(x, (0, missing[1], 0, missing[0]), "reflect")
        last = i == pools - 1
        x = twice(torch.cat([x, skip], 1), f"up_conv.{i}.0" if last else f"up_conv.{i}")
    name = f"up_conv.{pools - 1}.1"
    return functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"])


@pytest.mark.parametrize(("channels", "chans", "pools"), [(1, 32, 4), (2, 18, 4), (2, 5, 3)])
def test_names_and_shapes_are_the_published_ones(channels, chans, pools):
    ours = {k: tuple(v.shape) for k, v in Unet(channels, channels, chans, pools).named_parameters()}
    assert ours == published_shapes(channels, channels, chans, pools)


def test_the_demo_network_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in Unet(1, 1, 32, 4).parameters()) == 7_756_097


@pytest.mark.parametrize("grid", [(16, 20), (17, 13), (23, 18)])
def test_values_equal_the_layers_spelt_out(grid):
    unet = network(pools=3) if min(grid) >= 16 else network()
    x = draw((2, 2, *grid), torch.float64, 1)
    wanted = by_hand(unet.state_dict(), x, unet.pools)
    assert unet(x).shape == x.shape
    torch.testing.assert_close(unet(x), wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("grid", [(12, 16), (13, 11)])
def test_derivatives_of_the_complex_variant(grid):
    unet, support = network(2), torch.ones(grid, dtype=torch.bool)
    support[:, :2] = False
    x = 20 * draw(grid, torch.complex128, 2) * support
    check_derivatives(lambda z: complex_unet(unet, z, support), x)
    image = complex_unet(unet, x, support)
    assert bool((image[~support] == 0).all())
    assert bool((image[support] != x[support]).all())


@pytest.mark.parametrize("grid", [(12, 16), (13, 11)])
def test_derivatives_of_the_magnitude_variant(grid):
    unet = network(1)
    x = draw(grid, torch.float64, 3).abs()
    x[2, 3] = 40.0  # beyond the cut
    mean, deviation = x.mean(), x.std()
    assert float((x[2, 3] - mean) / deviation) > 6
    check_derivatives(lambda z: magnitude_unet(unet, z), x)


def test_the_magnitude_variant_is_the_published_pipeline():
    unet = network(1)
    x = draw((3, 12, 13), torch.float64, 4).abs()
    x[0, 2, 3] = 50.0
    for image, answer in zip(x, magnitude_unet(unet, x)):
        normal = ((image - image.mean()) / (image.std() + 1e-11)).clamp(-6, 6)
        wanted = unet(normal[None, None])[0, 0] * image.std() + image.mean()
        torch.testing.assert_close(answer, wanted, rtol=1e-9, atol=1e-9)


def test_scale_of_the_image_is_scale_of_the_answer():
    support = torch.ones(12, 12, dtype=torch.bool)
    x = 1e3 * draw((12, 12), torch.complex128, 6)
    two, one = network(2), network(1)
    torch.testing.assert_close(
        complex_unet(two, 7 * x, support), 7 * complex_unet(two, x, support), rtol=1e-7, atol=1e-4
    )
    moved = magnitude_unet(one, 7 * x.abs() + 100)
    torch.testing.assert_close(moved, 7 * magnitude_unet(one, x.abs()) + 100, rtol=1e-7, atol=1e-4)


def test_empty_images_give_no_nan():
    support = torch.ones(12, 12, dtype=torch.bool)
    zero = torch.zeros(12, 12, dtype=torch.complex128)
    assert bool((complex_unet(network(2), zero, support).abs() < 1).all())
    one = network(1)
    value, tangent = torch.func.jvp(
        lambda z: magnitude_unet(one, z.abs()), (zero,), (torch.ones_like(zero),)
    )
    assert bool(torch.isfinite(value).all())
    assert bool(torch.isfinite(tangent).all())


def test_single_precision():
    unet = network(2)
    support = torch.ones(13, 12, dtype=torch.bool)
    x = draw((13, 12), torch.complex128, 7)
    single = complex_unet(network(2).float(), x.to(torch.complex64), support)
    assert single.dtype == torch.complex64
    torch.testing.assert_close(
        single.to(x.dtype), complex_unet(unet, x, support), rtol=1e-3, atol=1e-4
    )


def test_what_fits():
    assert Unet(pools=4, chans=2).fits((32, 16))
    assert not Unet(pools=4, chans=2).fits((16, 16))
    assert not Unet(pools=4, chans=2).fits((15, 64))


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    unet = Unet(2, 2, 8, 2, drop=0.3)
    x = draw((1, 2, 12, 12), torch.float32, 8)
    first, second, third = unet(x), unet(x), unet(x)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    unet.eval()
    assert torch.equal(unet(x), unet(x))


@pytest.mark.parametrize("grid", [(16, 20), (17, 13), (23, 18)])
@pytest.mark.parametrize("channels", [1, 2])
def test_linearize_equals_forward_mode(grid, channels):
    unet = network(channels, pools=3) if min(grid) >= 16 else network(channels)
    x = draw((2, channels, *grid), torch.float64, 9)
    check_linearization(unet, unet.linearize, x)


@pytest.mark.parametrize("grid", [(12, 16), (13, 11)])
def test_linearize_equals_forward_mode_for_complex_images(grid):
    unet, support = network(2), torch.ones(grid, dtype=torch.bool)
    support[:, :2] = False
    x = 20 * draw(grid, torch.complex128, 10) * support
    check_linearization(
        lambda z: complex_unet(unet, z * support, support),
        lambda z: masked(linearize_complex_unet(unet, z * support, support), support),
        x,
    )


def masked(pair, support):
    value, jvp = pair
    return value, lambda tangents: jvp(tangents * support)


@pytest.mark.parametrize("grid", [(12, 16), (13, 11)])
def test_linearize_equals_forward_mode_for_magnitudes(grid):
    unet = network(1)
    x = draw(grid, torch.float64, 11).abs()
    x[2, 3] = 40.0  # beyond the cut
    check_linearization(
        lambda z: magnitude_unet(unet, z), lambda z: linearize_magnitude_unet(unet, z), x
    )


def test_tangents_of_empty_images_are_those_of_torch():
    zero, v = torch.zeros(12, 13, dtype=torch.float64), draw((12, 13), torch.float64, 12)
    one, two = network(1), network(2)
    wanted = torch.func.jvp(lambda z: magnitude_unet(one, z), (zero,), (v,))[1]
    torch.testing.assert_close(linearize_magnitude_unet(one, zero)[1](v[None])[0], wanted)
    support = zero == 0
    start, along = zero + 0j, draw((12, 13), torch.complex128, 13)
    wanted = torch.func.jvp(lambda z: complex_unet(two, z, support), (start,), (along,))[1]
    answer = linearize_complex_unet(two, start, support)[1](along[None])[0]
    torch.testing.assert_close(answer, wanted)


def test_tangents_in_single_precision():
    x, v = draw((1, 2, 13, 12), torch.float64, 14), draw((2, 1, 2, 13, 12), torch.float64, 15)
    wanted = network(2).linearize(x)[1](v)
    single = network(2).float().linearize(x.float())[1](v.float())
    assert single.dtype == torch.float32
    assert float((single - wanted).norm() / wanted.norm()) < 1e-4
