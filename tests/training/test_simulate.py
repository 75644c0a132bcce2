"""Simulated measurements: adjoints, noise level, seeds, maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from snrecon.errors import InputError
from snrecon.physics.operators import Encoding
from snrecon.training.config import SimulationConfig
from snrecon.training.gram import batch_gram
from snrecon.training.images import _resolved, draw_image, draw_shapes, load_source
from snrecon.training.simulate import (
    Simulator,
    coil_maps,
    simulate_measurement,
    simulate_scan,
    smooth_phase,
    tissue_phase,
)


def normalised(maps):
    return maps / maps.abs().square().sum(0).sqrt()


@pytest.fixture
def pools(generator):
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    head = ((x / 0.7) ** 2 + (y / 0.85) ** 2 < 1).float()
    return {32: head * (1 + 0.3 * torch.rand(5, 32, 32, generator=generator))}


SETTINGS = SimulationConfig(
    grids=[[32, 32], [32, 16]], coils=[3, 5], accelerations=[2.0, 4.0],
    kinds=["random", "equispaced_fraction", "gaussian2d"],
)


@pytest.mark.parametrize("planar", [False, True])
def test_batch_gram_is_the_normal_operator_and_its_own_gradient(generator, planar):
    maps = torch.randn(2, 3, 9, 6, generator=generator, dtype=torch.complex128)
    mask = torch.rand(2, 9, 6 if planar else 1, generator=generator) < 0.5
    mask = mask.expand(2, 9, 6)
    x = torch.randn(2, 9, 6, generator=generator, dtype=torch.complex128).requires_grad_()
    y = batch_gram(maps, mask)(x)
    for i in range(2):
        encoding = Encoding(maps[i], mask[i])
        torch.testing.assert_close(y[i].detach(), encoding.H(encoding(x[i].detach())))
    weight = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    (weight.conj() * y).sum().real.backward()
    torch.testing.assert_close(x.grad, batch_gram(maps, mask)(weight))


@pytest.mark.parametrize("planar", [False, True])
def test_measurement_agrees_with_the_encoding_operator(generator, planar):
    """Without noise b is A^H A x; a narrow strip and the full transform see the same."""
    maps = normalised(coil_maps(4, (16, 10), generator))
    mask = torch.rand(16, 10 if planar else 1, generator=generator) < 0.5
    mask = mask.expand(16, 10)
    image = 1e6 * torch.randn(16, 10, generator=generator, dtype=torch.complex64)
    kspace, target = simulate_measurement(image, maps, maps, mask, "clean", generator)
    encoding = Encoding(maps, mask)
    torch.testing.assert_close(kspace, encoding(image), rtol=1e-4, atol=30.0)
    torch.testing.assert_close(target, image, rtol=1e-4, atol=1.0)


def test_noise_has_unit_variance_and_the_reference_keeps_the_acquired_part(generator):
    maps = normalised(coil_maps(4, (64, 64), generator))
    mask = (torch.arange(64) % 2 == 0)[:, None].expand(64, 64)
    zero = torch.zeros(64, 64, dtype=torch.complex64)
    kspace, target = simulate_measurement(zero, maps, maps, mask, "reference", generator)
    b = Encoding(maps, mask).H(kspace)
    assert not kspace[:, ~mask].any()
    assert float(kspace[:, mask].abs().square().mean()) == pytest.approx(1, rel=0.05)
    # Half of the samples: variance 1/2 a voxel; standard error sqrt(1/4096), nearly doubled by
    # the correlation between voxels half a field of view apart.
    assert float(b.abs().square().mean()) == pytest.approx(0.5, rel=0.1)
    torch.testing.assert_close(b, target, rtol=1e-4, atol=1e-4)


def test_batches_depend_on_seed_and_index_only(pools):
    one, same = (Simulator(pools, SETTINGS, 3).draw(7, 2) for _ in range(2))
    other = Simulator(pools, SETTINGS, 3).draw(8, 2)
    assert torch.equal(one.b, same.b)
    assert torch.equal(one.maps, same.maps)
    assert one.b.shape != other.b.shape or not torch.equal(one.b, other.b)


def test_batches_are_consistent(pools):
    simulator = Simulator(pools, SETTINGS, 0)
    for index in range(12):
        batch = simulator.draw(index, 2)
        power = batch.maps.abs().square().sum(1)
        off = ~batch.support
        assert bool(((power - 1).abs()[batch.support] < 1e-4).all())
        assert bool((power[off] == 0).all())
        assert bool((batch.b[off] == 0).all())
        assert bool((batch.target[off] == 0).all())
        assert 1.3 < batch.mask.numel() / int(batch.mask.sum()) < 6
        if batch.mask.shape[-1] < 32:  # strips are fully sampled along kx
            assert bool((batch.mask == batch.mask[..., :1]).all())


def test_scan_has_the_snr_that_was_asked_for(pools):
    image = pools[32][0]
    scan, truth = simulate_scan(image, coils=4, snr=25, seed=2)
    encoding = Encoding(scan.maps, scan.sampled)
    error = encoding.H(scan.kspace) - truth
    inside = image > 0.15 * image.max()
    assert float(truth[inside].abs().mean()) == pytest.approx(25, rel=1e-4)
    assert float(error.abs().square().mean()) == pytest.approx(1, rel=0.12)
    again, _ = simulate_scan(image, coils=4, snr=25, seed=2)
    assert torch.equal(scan.kspace, again.kspace)


def test_images_from_files(tmp_path, generator):
    volume = np.zeros((4, 40, 30), dtype=np.uint16)
    volume[1:, 8:32, 6:24] = 700
    np.savez(tmp_path / "a.npz", x=volume, y=volume // 2)
    source = load_source(f"{tmp_path / 'a.npz'}:x+y", voxel=5.0)
    assert source.slices.shape == (3, 2, 40, 30)  # the empty slice is left out
    image = draw_image(source, 32, generator)
    assert image.shape == (32, 32)
    assert bool(torch.isfinite(image).all())
    with pytest.raises(InputError, match="no array 'z'; it has x, y"):
        load_source(f"{tmp_path / 'a.npz'}:z")
    with pytest.raises(InputError, match="which array"):
        load_source(str(tmp_path / "a.npz"))
    (tmp_path / "c.npz").write_bytes(b"not a zip file")
    with pytest.raises(InputError, match="cannot be read"):
        load_source(f"{tmp_path / 'c.npz'}:x")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [(np.nan, "contain NaN or infinite"), (np.inf, "contain NaN or infinite"),
     ("text", "the array 'x' does not hold numbers"), (0.0, "the images are empty")])
def test_images_without_usable_numbers(tmp_path, value, sentence):
    volume = np.full((3, 40, 30), 0.0 if value == 0 else 1.0).astype(type(value))
    volume[1, 20, 15] = value
    np.savez(tmp_path / "a.npz", x=volume)
    with pytest.raises(InputError, match=sentence):
        load_source(f"{tmp_path / 'a.npz'}:x")


@pytest.mark.parametrize(
    "entry", ["folder", "folder:axial", "b.npz", "b.npz:x", "b.nii.gz", "b.h5"])
def test_images_that_are_not_there(tmp_path, monkeypatch, entry):
    monkeypatch.setenv("SNRECON_DATA", str(tmp_path))
    name = entry.partition(":")[0]
    with pytest.raises(InputError) as caught:
        load_source(f"{tmp_path / entry}")
    assert str(caught.value) == f"{tmp_path / name}: there is no such file or folder."
    with pytest.raises(InputError) as caught:
        load_source(entry)
    assert str(caught.value).startswith(f"{name}: there is no such file or folder, neither here")
    assert "SNRECON_DATA" in str(caught.value)


def test_random_shapes_are_bounded_flat_and_different(generator):
    one, two = (draw_shapes(48, generator) for _ in range(2))
    assert one.shape == (48, 48)
    assert not torch.equal(one, two)
    assert bool(torch.isfinite(one).all())
    assert float(one[:2].abs().max()) < 0.2 * float(one.abs().max())  # air around the head


@pytest.mark.parametrize("size", [32, 33, 96, 97])
def test_a_flat_phantom_stays_flat_on_every_grid(size):
    fine = torch.zeros(2 * size, 2 * size)
    fine[size // 2 : 3 * size // 2, size // 2 : 3 * size // 2] = 1
    image = _resolved(fine, size)
    inside = image[size // 2 - size // 8 : size // 2 + size // 8, size // 2]
    assert 0 < float(inside.max()) < 1.1 * float(inside.min())  # the edges ring


def test_phase_of_a_strip_is_that_of_a_part_of_the_view():
    """Along kx a strip of a quarter of the view sees about a quarter of the phase."""

    def slope(window: float) -> float:
        total = 0.0
        for seed in range(40):
            generator = torch.Generator().manual_seed(seed)
            phase = smooth_phase((32, 16), generator, window)
            total += float((phase[:, 1:] - phase[:, :-1]).abs().mean())
        return total

    assert slope(0.25) < 0.6 * slope(1.0)


def test_phase_reaches_several_turns():
    spread = []
    for seed in range(60):
        phase = smooth_phase((32, 32), torch.Generator().manual_seed(seed))
        spread.append(float(phase.max() - phase.min()))
    assert max(spread) > 30  # the residue of a shim in gradient-echo images
    assert min(spread) < 12


def test_tissue_phase_follows_the_picture():
    """Where the picture is one flat grey, far from its rim, only the smooth bumps are left; a
    step in the grey gives a step in the phase for many draws."""
    step = torch.ones(40, 40)
    step[:, 20:] = 0.6
    jumps = []
    for seed in range(40):
        phase = tissue_phase(step, torch.Generator().manual_seed(seed))
        assert phase.shape == step.shape
        assert bool(torch.isfinite(phase).all())
        across = (phase[10:30, 20] - phase[10:30, 19]).abs().mean()
        beside = (phase[10:30, 18] - phase[10:30, 17]).abs().mean()
        jumps.append(float(across - beside))
    assert sum(jump > 0.1 for jump in jumps) > 8
    same = [tissue_phase(step, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*same)
