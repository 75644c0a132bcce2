"""E2E-VarNet: names, values against real arithmetic spelt out, calibration lines, derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from derivatives import check_derivatives, check_linearization, draw
from snrecon.errors import InputError
from snrecon.networks.e2e_varnet import E2EVarNet, combine_coils, linearize_combine_coils
from snrecon.networks.norm_unet import NormUnet
from snrecon.networks.sensitivity import calibration_samples
from snrecon.networks.unet import Unet
from snrecon.physics.fourier import fft, ifft

GRID = (14, 11)
VARIANTS = ({}, {"espirit": 8}, {"memory": 1}, {"memory": 1, "residual": 1})


def network(unrolls: int = 2, seed: int = 3, **options: int) -> E2EVarNet:
    torch.manual_seed(seed)
    built = E2EVarNet(unrolls, 3, 2, 2, 2, **options).double().requires_grad_(False)
    for i, cascade in enumerate(built.cascades):
        cascade.dc_weight.fill_(0.7 + 0.4 * i)
    return built


def line_mask(grid: tuple[int, int] = GRID) -> torch.Tensor:
    lines = torch.arange(grid[0]) % 3 == 0
    lines[grid[0] // 2 - 2 : grid[0] // 2 + 2] = True
    return lines[:, None].expand(grid).clone()


def test_names_are_the_published_ones():
    names = set(network(3).state_dict())
    assert {n for n in names if "unet" not in n} == {f"cascades.{i}.dc_weight" for i in range(3)}
    inner = {n.partition(".unet.")[0] for n in names if "unet" in n}
    assert inner == {"sens_net.norm_unet", *(f"cascades.{i}.model" for i in range(3))}


def test_the_published_size():
    """29.9 million parameters, 12 cascades of 18 channels and a sensitivity network of 8."""
    with torch.device("meta"):
        published = E2EVarNet()
    assert round(sum(p.numel() for p in published.parameters()) / 1e5) == 299


# fastMRI's arithmetic on pairs of real numbers, (batch, coil, ky, kx, 2)
def pairs(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(x)


def transform(x: torch.Tensor, inverse: bool) -> torch.Tensor:
    """Centred DFT by matrices."""
    y = torch.view_as_complex(x.contiguous())
    for axis in (-2, -1):
        n = y.shape[axis]
        k = torch.arange(n, dtype=torch.float64) - n // 2
        angle = (2 if inverse else -2) * math.pi * torch.outer(k, k) / n
        matrix = torch.polar(torch.full_like(angle, n**-0.5), angle)
        y = (matrix @ y) if axis == -2 else (y @ matrix.T)
    return torch.view_as_real(y)


def multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    real = a[..., 0] * b[..., 0] - a[..., 1] * b[..., 1]
    return torch.stack([real, a[..., 0] * b[..., 1] + a[..., 1] * b[..., 0]], -1)


def conjugate(a: torch.Tensor) -> torch.Tensor:
    return torch.stack([a[..., 0], -a[..., 1]], -1)


def norm_unet(module: NormUnet, x: torch.Tensor) -> torch.Tensor:
    """``(batch, 1, ky, kx, 2)``."""
    x = x[:, 0].permute(0, 3, 1, 2)
    mean = x.flatten(2).mean(2)[:, :, None, None]
    deviation = x.flatten(2).std(2)[:, :, None, None]
    height, width = x.shape[-2:]
    tall, wide = math.ceil(height / 16) * 16, math.ceil(width / 16) * 16
    top, left = (tall - height) // 2, (wide - width) // 2
    padded = functional.pad(
        (x - mean) / deviation, (left, wide - width - left, top, tall - height - top)
    )
    y = module.unet(padded)[..., top : top + height, left : left + width]
    return (y * deviation + mean).permute(0, 2, 3, 1)[:, None]


@pytest.mark.parametrize("grid", [GRID, (16, 18), (14, 18)])
def test_values_equal_the_published_arithmetic(grid):
    """Every step on pairs of reals, the sign of the last term as in the published code."""
    model, mask = network(), line_mask(grid)
    k0 = draw((3, *grid), torch.complex128, 1) * mask
    calibration = torch.zeros(grid, dtype=torch.bool)
    calibration[grid[0] // 2 - 2 : grid[0] // 2 + 2] = True
    assert torch.equal(calibration, calibration_samples(mask))
    measured = pairs(k0)[None]
    coil_images = transform(measured * calibration[..., None], True)
    maps = norm_unet(model.sens_net.norm_unet, coil_images.transpose(0, 1)).transpose(0, 1)
    maps = maps / (maps**2).sum(-1).sum(1).sqrt()[:, None, ..., None]
    k = measured.clone()
    for cascade in model.cascades:
        image = multiply(transform(k, True), conjugate(maps)).sum(1, keepdim=True)
        refined = norm_unet(cascade.model, image)
        soft = torch.where(mask[..., None], k - measured, 0.0) * cascade.dc_weight
        k = k - soft - transform(multiply(refined, maps), False)
    predicted, ours = model.predict(k0, mask, calibration)
    torch.testing.assert_close(pairs(ours), maps[0], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(pairs(predicted), k[0], rtol=1e-8, atol=1e-9)
    image = multiply(transform(k, True), conjugate(maps)).sum(1)[0]
    torch.testing.assert_close(
        pairs(model(k0, mask, calibration)), image, rtol=1e-8, atol=1e-9
    )


@pytest.mark.parametrize("grid", [GRID, (14, 18)])
def test_memory_descends_the_gradient_of_the_kept_image(grid):
    model, mask = network(3, memory=1), line_mask(grid)
    k0 = draw((3, *grid), torch.complex128, 1) * mask
    calibration = calibration_samples(mask)
    k, (_, maps), x = k0, model.predict(k0, mask, calibration), torch.zeros_like(k0[0])
    for i, cascade in enumerate(model.cascades):
        cascade.step.fill_(0.4 + 0.2 * i)
        gradient = combine_coils(fft(maps * x, (-2, -1)) * mask - k0, maps)
        parts = (part[None] for part in (combine_coils(k, maps), gradient, x))
        change = cascade.step * gradient + cascade.model(*parts)[0]
        k = k - cascade.dc_weight * mask * (k - k0) - fft(maps * change, (-2, -1))
        x = x - change
    torch.testing.assert_close(model.predict(k0, mask, calibration)[0], k, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("grid", [(14, 11), (16, 18)])
def test_derivatives(grid, options):
    model, mask = network(**options), line_mask(grid)
    calibration = calibration_samples(mask)
    k = draw((3, *grid), torch.complex128, 2)
    check_derivatives(lambda y: model(y, mask, calibration), k)
    check_derivatives(lambda y: model.predict(y, mask, calibration)[1], k)  # the maps themselves


def test_maps_see_the_calibration_lines_only():
    model, mask = network(), line_mask()
    calibration = calibration_samples(mask)
    k = draw((3, *GRID), torch.complex128, 4)
    other = k + draw((3, *GRID), torch.complex128, 5) * ~calibration
    _, maps = model.predict(k, mask, calibration)
    _, again = model.predict(other, mask, calibration)
    assert torch.equal(maps, again)
    power = maps.abs().square().sum(0)
    torch.testing.assert_close(power, torch.ones_like(power))
    assert not torch.allclose(model(k, mask, calibration), model(other, mask, calibration))


def test_a_factor_on_kspace_is_a_factor_on_the_image():
    model, mask = network(), line_mask()
    calibration = calibration_samples(mask)
    k = draw((3, *GRID), torch.complex128, 6)
    for factor in (1e-5, 1e4):
        torch.testing.assert_close(
            model(factor * k, mask, calibration) / factor, model(k, mask, calibration),
            rtol=1e-8, atol=1e-9,
        )  # fmt: skip


@pytest.mark.parametrize("options", VARIANTS)
def test_each_item_of_a_batch_has_its_own_mask(options):
    model = network(**options)
    masks = torch.stack([line_mask(), line_mask().roll(1, 0)])
    calibrations = torch.stack([calibration_samples(m) for m in masks])
    k = draw((2, 3, *GRID), torch.complex128, 7)
    together = model(k, masks, calibrations)
    for i in range(2):
        torch.testing.assert_close(
            together[i], model(k[i], masks[i], calibrations[i]), rtol=1e-9, atol=1e-10
        )


def test_zero_data_give_zero_and_no_nan():
    model, mask = network(), line_mask()
    calibration = calibration_samples(mask)
    zero = torch.zeros(3, *GRID, dtype=torch.complex128)
    assert bool((model(zero, mask, calibration) == 0).all())
    one_coil = draw((3, *GRID), torch.complex128, 8)
    one_coil[1] = 0  # a dead coil
    _, tangent = torch.func.jvp(
        lambda y: model(y, mask, calibration), (one_coil,), (torch.ones_like(one_coil),)
    )
    assert bool(torch.isfinite(torch.view_as_real(tangent)).all())


def test_single_precision():
    model, mask = network(), line_mask()
    calibration = calibration_samples(mask)
    k = draw((3, *GRID), torch.complex128, 9)
    single = network().float()(k.to(torch.complex64), mask, calibration)
    assert single.dtype == torch.complex64
    torch.testing.assert_close(
        single.to(k.dtype), model(k, mask, calibration), rtol=1e-2, atol=1e-3
    )


def fastmri_count(lines: torch.Tensor) -> int:
    """Low frequencies of a mask ``(width,)`` as fastMRI counts them."""
    centre = len(lines) // 2
    left = right = 0
    while left < centre and lines[centre - 1 - left]:
        left += 1
    while right < len(lines) - centre and lines[centre + right]:
        right += 1
    return max(2 * min(left, right), 1)


@pytest.mark.parametrize("seed", range(12))
def test_calibration_lines_are_counted_as_fastmri_counts(seed):
    rng = torch.Generator().manual_seed(seed)
    lines = torch.rand(20, generator=rng) < 0.5
    lines[10] = True
    lines[10 - seed % 5 : 10 + (seed + 1) % 5] = True
    mask = lines[:, None].expand(20, 6)
    found = calibration_samples(mask, limit=None)
    count = fastmri_count(lines)
    start = (20 - count + 1) // 2  # of an even width
    wanted = torch.zeros(20, dtype=torch.bool)
    wanted[start : start + count] = True
    assert torch.equal(found, wanted[:, None].expand(20, 6))


def test_calibration_of_other_masks():
    full = torch.ones(20, 40, dtype=torch.bool)
    assert bool(calibration_samples(full, limit=None).all())
    few = calibration_samples(full, limit=6)
    assert torch.equal(few, (torch.arange(20) - 9.5).abs()[:, None].expand(20, 40) < 3)
    plane = torch.zeros(20, 20, dtype=torch.bool)
    plane[7:13, 6:15] = True
    plane[::4, ::4] = True
    block = torch.zeros_like(plane)
    block[7:13, 6:14] = True
    assert torch.equal(calibration_samples(plane), block)
    with pytest.raises(InputError, match="calibration lines"):
        calibration_samples(torch.arange(20)[:, None].expand(20, 20) % 20 == 1)


def test_what_fits():
    assert E2EVarNet(1, 2, 4, 2, 4).fits((17, 5))
    assert not E2EVarNet(1, 2, 4, 2, 4).fits((16, 16))
    assert E2EVarNet(1, 2, 3, 2, 3).fits((8, 8))


@pytest.mark.parametrize("grid", [(14, 11), (16, 18)])
@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("options", VARIANTS)
def test_linearize_equals_forward_mode(grid, part, options):
    """Of k-space and of the maps, from raw k-space."""
    model, mask = network(**options), line_mask(grid)
    calibration = calibration_samples(mask)

    def linearize(y):
        values, jvp = model.linearize(y, mask, calibration)
        return values[part], lambda tangents: jvp(tangents)[part]

    k = draw((3, *grid), torch.complex128, 10)
    check_linearization(lambda y: model.predict(y, mask, calibration)[part], linearize, k)


def test_the_combination_of_coils_is_linearized_in_both():
    maps, slope = draw((3, *GRID), torch.complex128, 11), draw((3, *GRID), torch.complex128, 12)

    def moving(k):
        return combine_coils(k, maps + slope * k * k)

    def linearize(k):
        image, jvp = linearize_combine_coils(k, maps + slope * k * k)
        return image, lambda tangents: jvp(tangents, 2 * slope * k * tangents)

    check_linearization(moving, linearize, draw((3, *GRID), torch.complex128, 13))


def test_tangents_at_dead_coils_and_zero_data_are_those_of_torch():
    model, mask = network(), line_mask()
    calibration = calibration_samples(mask)
    k = draw((3, *GRID), torch.complex128, 14)
    v = draw(k.shape, torch.complex128, 15)
    k[1] = 0
    for point in (k, 0 * k):
        _, wanted = torch.func.jvp(lambda y: model.predict(y, mask, calibration), (point,), (v,))
        answers = model.linearize(point, mask, calibration)[1](v[None])
        for answer, want in zip(answers, wanted, strict=True):
            torch.testing.assert_close(answer[0], want, rtol=1e-9, atol=1e-9)


def test_tangents_in_single_precision():
    model, mask = network(), line_mask()
    calibration = calibration_samples(mask)
    k, v = (draw((3, *GRID), torch.complex128, seed) for seed in (16, 17))
    wanted, _ = model.linearize(k, mask, calibration)[1](v[None])
    low = network().float().linearize(k.to(torch.complex64), mask, calibration)[1]
    single, _ = low(v[None].to(torch.complex64))
    assert single.dtype == torch.complex64
    assert float((single - wanted).norm() / wanted.norm()) < 1e-3


def test_a_residual_network_starts_as_the_zero_filled_image_with_maps_of_the_centre():
    grid = (32, 32)
    generator = torch.Generator().manual_seed(3)
    kspace = torch.randn(3, *grid, dtype=torch.complex128, generator=generator)
    mask = (torch.arange(32) % 2 == 0)[:, None].expand(grid).clone()
    mask[12:20] = True
    calibration = calibration_samples(mask)
    network = E2EVarNet(2, 4, 2, 4, 2, residual=1).double()
    for part in network.modules():
        if isinstance(part, Unet):
            part.start_small(0.0)
    with torch.no_grad():
        predicted, maps = network.predict(kspace, mask, calibration)
    centre = ifft(kspace * calibration, (-2, -1))
    torch.testing.assert_close(maps, centre / centre.abs().square().sum(0).sqrt())
    torch.testing.assert_close(predicted, kspace * mask)
    with pytest.raises(InputError, match="residual must be 0 or 1"):
        E2EVarNet(residual=2)
