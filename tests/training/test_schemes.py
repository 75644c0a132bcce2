"""Each scheme looks at what it may look at, and its loss is what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from measurements import seeded, simulated
from snrecon.networks.e2e_varnet import E2EVarNet
from snrecon.networks.sensitivity import calibration_samples
from snrecon.networks.varnet import VarNet
from snrecon.training.apply import apply
from snrecon.training.augment import Symmetry, add_noise, disturb_shots, draw_symmetry, move
from snrecon.training.batch import Batch
from snrecon.training.config import Config, DataConfig, NetworkConfig, SimulationConfig
from snrecon.training.gram import batch_gram
from snrecon.training.schemes import (
    SSDU,
    Noise2Recon,
    Supervised,
    Vortex,
    scheme_of,
    split_samples,
)
from snrecon.training.scores import excess_error, nmse, normalised_error
from snrecon.training.simulate import Simulator


def zero_filled(batch: Batch) -> torch.Tensor:
    return batch.b


@pytest.mark.parametrize("grid", [(32, 32), (31, 24)])
def test_moved_measurements_are_those_of_the_moved_object(grid):
    batch = simulated(grid)
    for seed in range(6):
        symmetry = draw_symmetry(grid, seeded(seed))
        moved = move(batch, symmetry)
        scale = batch.b.abs().max()
        assert float((moved.b - symmetry.image(batch.b)).abs().max() / scale) < 1e-5
        gram, moved_gram = batch_gram(batch.maps, batch.mask), batch_gram(moved.maps, moved.mask)
        difference = moved_gram(symmetry.image(batch.target)) - symmetry.image(gram(batch.target))
        assert float(difference.abs().max() / scale) < 1e-5


def test_a_symmetry_that_forgets_the_mask_is_noticed():
    batch = simulated()
    symmetry = Symmetry((3, -2), (True, False))
    wrong = replace(move(batch, symmetry), mask=batch.mask)
    gram = batch_gram(wrong.maps, wrong.mask)
    right = symmetry.image(batch_gram(batch.maps, batch.mask)(batch.target))
    difference = gram(symmetry.image(batch.target)) - right
    assert float(difference.abs().max() / right.abs().max()) > 0.01


def test_noise_is_added_on_samples_and_scaled_to_one():
    batch = simulated(grid=(64, 64), count=4)
    noisier, scale = add_noise(batch, (0.3, 0.3), seeded())
    assert scale.shape == (4, 1, 1)
    power = (batch.b.abs().square() * batch.support).sum((-2, -1)) / batch.support.sum((-2, -1))
    added = 0.3 * power.sqrt()
    assert torch.allclose(scale.flatten(), torch.sqrt(1 + added**2))
    assert not noisier.kspace[~batch.mask.unsqueeze(1).expand_as(batch.kspace)].any()
    difference = noisier.kspace * scale.unsqueeze(1) - batch.kspace
    for item in range(4):
        sampled = difference[item][:, batch.mask[item]]
        sd = float(sampled.abs().square().mean().sqrt())
        assert abs(sd / float(added[item]) - 1) < 4 / sampled.numel() ** 0.5


def test_the_first_shot_stays_and_the_others_move():
    batch = simulated()
    disturbed = disturb_shots(batch, 1.0, 4, seeded())
    for moved, whole, mask in zip(disturbed.kspace, batch.kspace, batch.mask):
        first = mask.any(1).nonzero()[::4, 0]
        torch.testing.assert_close(moved[:, first], whole[:, first])
    assert torch.allclose(disturbed.kspace.abs(), batch.kspace.abs(), atol=1e-4)
    assert float((disturbed.b - batch.b).abs().max()) > 0.01 * float(batch.b.abs().max())
    still = disturb_shots(batch, 0.0, 4, seeded())
    assert torch.allclose(still.kspace, batch.kspace)


@pytest.mark.parametrize("split", ["uniform", "gaussian", "lines"])
def test_a_split_takes_its_share_of_the_samples_but_never_the_centre(split):
    mask = simulated(count=3).mask
    if split == "lines":
        mask[:, 3, 5] = ~mask[:, 3, 5]  # a mask of points, where it is a uniform choice
    chosen = split_samples(mask, 0.4, split, seeded())
    assert not (chosen & ~mask).any()
    assert not chosen[:, 15:18, 15:18].any()
    free = mask.clone()
    free[:, 15:18, 15:18] = False
    wanted = (0.4 * free.flatten(1).sum(1)).round()
    assert torch.equal(chosen.flatten(1).sum(1), wanted.long())
    assert not torch.equal(chosen, split_samples(mask, 0.4, split, seeded(1)))
    assert torch.equal(chosen, split_samples(mask, 0.4, split, seeded()))


def test_lines_are_taken_as_a_whole_and_never_those_of_the_centre():
    mask = simulated(count=3).mask
    chosen = split_samples(mask, 0.4, "lines", seeded())
    assert torch.equal(chosen, chosen[..., :1].expand(mask.shape))
    assert not (chosen & ~mask).any()
    assert not chosen[:, 15:18].any()
    lines = mask[..., 0].clone()
    lines[:, 15:18] = False
    assert torch.equal(chosen[..., 0].sum(1), (0.4 * lines.sum(1)).round().long())


def test_a_gaussian_split_is_denser_at_the_centre():
    mask = torch.ones(20, 64, 64, dtype=torch.bool)
    inner = torch.zeros(64, 64, dtype=torch.bool)
    inner[16:48, 16:48] = True
    shares = [float(split_samples(mask, 0.3, split, seeded())[:, inner].float().mean())
              for split in ("uniform", "gaussian")]
    assert abs(shares[0] - 0.3) < 0.02
    assert shares[1] > 0.45


def test_ssdu_never_sees_the_target_and_predicts_only_what_it_did_not_get():
    batch = simulated()
    seen = []

    def reconstruct(part: Batch) -> torch.Tensor:
        seen.append(part)
        return part.b

    loss = SSDU(0.4).loss(reconstruct, batch, seeded())
    blind = replace(batch, target=torch.full_like(batch.target, torch.nan))
    assert torch.equal(loss, SSDU(0.4).loss(reconstruct, blind, seeded()))
    left_out = batch.mask & ~seen[0].mask
    assert not seen[0].kspace[left_out.unsqueeze(1).expand_as(batch.kspace)].any()
    changed = replace(batch, kspace=batch.kspace + left_out.unsqueeze(1))
    other = []
    SSDU(0.4).loss(lambda part: other.append(part) or part.b, changed, seeded())
    assert torch.equal(other[0].b, seen[0].b)


def test_ssdu_is_zero_for_the_image_that_the_samples_come_from():
    batch = simulated()
    image = batch.target * batch.support
    exact = replace(batch, kspace=batch.measure(image) * batch.mask.unsqueeze(1))
    assert float(SSDU().loss(lambda part: image, exact, seeded()).max()) < 1e-4
    assert float(SSDU().loss(lambda part: 0 * image, exact, seeded()).min()) == pytest.approx(2)


def test_the_share_of_a_range_differs_from_draw_to_draw():
    batch = simulated((64, 64))
    shares = []

    def reconstruct(part: Batch) -> torch.Tensor:
        shares.append(1 - float(part.mask.sum() / batch.mask.sum()))
        return part.b

    for seed in range(20):
        SSDU(0.6, smallest=0.1).loss(reconstruct, batch, seeded(seed))
    assert 0.09 < min(shares) < 0.25
    assert 0.45 < max(shares) < 0.61


@pytest.mark.parametrize(("kind", "gain"), [("logarithmic", 1.0), ("excess", 100.0)])
def test_logarithms_of_ssdu_are_of_the_left_out_samples(kind, gain):
    """Twice the error of every left-out sample adds the logarithm of 2 (where noise is nothing)."""
    batch = simulated()
    loss = [SSDU(0.4, "lines", kind).loss(
        lambda part: 0 * part.b, replace(batch, kspace=factor * batch.kspace), seeded())
        for factor in (gain, 2 * gain)]
    torch.testing.assert_close(loss[1] - loss[0], torch.full((2,), torch.tensor(2.0).log().item()),
                               rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scheme", [Noise2Recon(0.1), Vortex(0.1)])
def test_only_labelled_measurements_look_at_their_targets(scheme):
    batch = replace(simulated(), labelled=torch.tensor([True, False]))
    loss = scheme.loss(zero_filled, batch, seeded())
    assert torch.equal(loss[:1], Supervised().loss(zero_filled, batch, seeded())[:1])
    other = replace(batch, target=batch.target + torch.tensor([0.0, 5.0]).reshape(2, 1, 1))
    assert torch.equal(scheme.loss(zero_filled, other, seeded()), loss)


@pytest.mark.parametrize("scheme", [Noise2Recon(0.1), Vortex(0.1)])
def test_consistency_teaches_the_disturbed_branch_only(scheme):
    batch = replace(simulated(), labelled=torch.tensor([False, False]))
    gains = {}

    def reconstruct(part: Batch) -> torch.Tensor:
        which = "itself" if torch.equal(part.kspace, batch.kspace) else "disturbed"
        gains[which] = torch.tensor(1.0, requires_grad=True)
        return part.b * gains[which]

    loss = scheme.loss(reconstruct, batch, seeded()).sum()
    wanted = [gains["itself"], gains["disturbed"]]
    itself, disturbed = torch.autograd.grad(loss, wanted, allow_unused=True)
    assert itself is None or float(itself) == 0
    assert float(disturbed) != 0


def test_each_kind_of_measurement_pays_its_own_passes_only():
    batch = replace(simulated(count=3), labelled=torch.tensor([True, False, True]))
    seen = []

    def reconstruct(part: Batch) -> torch.Tensor:
        seen.append((len(part.b), torch.is_grad_enabled()))
        return part.b

    Noise2Recon().loss(reconstruct, batch, seeded())
    assert seen == [(2, True), (1, False), (1, True)]


def test_vortex_asks_nothing_of_an_equivariant_method_without_disturbance():
    batch = replace(simulated(), labelled=torch.tensor([False, False]))
    for seed in range(4):
        quiet = Vortex(1.0, sigma=(1e-7, 1e-7), motion=0.0).loss(zero_filled, batch, seeded(seed))
        assert float(quiet.max()) < 1e-3
        loud = Vortex(1.0, sigma=(0.5, 0.5), motion=3.0).loss(zero_filled, batch, seeded(seed))
        assert float(loud.min()) > 0.05


def test_unlabelled_images_have_no_target():
    batch = simulated(labelled=0.25, count=12)
    assert 0 < int(batch.labelled.sum()) < 12
    assert not batch.target[~batch.labelled].any()
    assert batch.target[batch.labelled].any()


def test_batches_are_balanced_between_images_with_and_without_targets():
    size, pool = 32, torch.ones(1, 32, 32).repeat(20, 1, 1)
    settings = SimulationConfig(grids=[[size, size]], coils=[2, 2], kinds=["random"],
                                accelerations=[2.0])

    def share(**options) -> float:
        source = Simulator({size: pool}, settings, 1, **options)
        return float(torch.cat([source.draw(i, 20).labelled for i in range(10)]).float().mean())

    assert abs(share(labelled=0.1) - 0.1) < 4 * (0.09 / 200) ** 0.5
    assert abs(share(labelled=0.1, balance=0.5) - 0.5) < 4 * (0.25 / 200) ** 0.5
    assert share(labelled=1.0, balance=0.5) == 1
    assert share(labelled=0.0, balance=0.5) == 0


def test_normalised_error():
    target = torch.tensor([[3.0 + 4j, 0, 0], [1.0, 1, 1]])
    answer = torch.tensor([[0.0 + 0j, 0, 0], [1.0, 1, 2]])
    expected = torch.tensor([2.0, 1 / 3**0.5 + 1 / 3])
    assert torch.allclose(normalised_error(answer, target), expected, atol=1e-4)
    answer.requires_grad_(True)
    (gradient,) = torch.autograd.grad(normalised_error(answer, answer.detach()).sum(), answer)
    assert torch.isfinite(torch.view_as_real(gradient)).all()


@pytest.mark.parametrize("name", ["ssdu", "noise2recon", "vortex"])
def test_slices_can_be_learnt_without_their_targets(name):
    """The error against a target that is never seen falls. Where one slice has its target, that
    of this slice falls far, and the other, which need only be stable, does not get worse."""
    scheme = {"ssdu": SSDU(), "noise2recon": Noise2Recon(), "vortex": Vortex()}[name]
    batch = simulated(snr=50.0)
    flags = torch.tensor([True, False])
    if isinstance(scheme, SSDU):
        flags = torch.tensor([False, False])
    truth, batch = batch.target, replace(
        batch, labelled=flags, target=batch.target * flags.reshape(2, 1, 1))
    torch.manual_seed(0)
    network = VarNet(3, 8)

    def reconstruct(part: Batch) -> torch.Tensor:
        return network(part.b, batch_gram(part.maps, part.mask), part.support)

    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    before = nmse(reconstruct(batch).detach(), truth)
    for step in range(150):
        optimiser.zero_grad()
        scheme.loss(reconstruct, batch, seeded(step)).mean().backward()
        optimiser.step()
    after = nmse(reconstruct(batch).detach(), truth)
    limits = [0.6, 0.6] if isinstance(scheme, SSDU) else [0.3, 1.0]
    assert bool((after < torch.tensor(limits) * before).all()), (before, after)


def test_excess_ssdu_does_not_count_the_noise_of_the_samples():
    """Misfit of variance 1 + e counts as e, however small, and noise alone as about nothing."""
    generator = seeded()
    wanted = torch.zeros(4, 40_000, dtype=torch.complex64)
    chosen = torch.ones(4, 40_000, dtype=torch.bool)
    noise = torch.randn(wanted.shape, dtype=wanted.dtype, generator=generator)
    error = torch.randn(wanted.shape, dtype=wanted.dtype, generator=generator)
    size = torch.tensor([10.0, 1.0, 0.3, 0.0])[:, None]
    loss = excess_error(wanted + size * error, noise, chosen)
    torch.testing.assert_close(loss[:3].exp(), size[:3, 0], rtol=0.03, atol=0)
    assert float(loss[3].exp()) < 0.15
    apart = chosen & (torch.arange(40_000) < 20_000)  # what is not chosen does not count
    half = excess_error(torch.where(apart, size * error, 1e3), noise, apart)
    torch.testing.assert_close(half[:2].exp(), size[:2, 0], rtol=0.05, atol=0)


@pytest.mark.parametrize("split", ["uniform", "gaussian", "lines"])
def test_a_network_that_makes_its_maps_keeps_the_calibration_lines(split):
    batch = simulated((64, 64))
    seen = []

    def reconstruct(part: Batch) -> torch.Tensor:
        seen.append(part.mask)
        return part.b

    SSDU(0.4, split, calibration=True).loss(reconstruct, batch, seeded())
    SSDU(0.8, split).loss(reconstruct, batch, seeded())
    for number, mask in enumerate(batch.mask):
        whole = calibration_samples(mask)
        assert bool(seen[0][number][whole].all())
        lines = int(whole.any(dim=1).sum())
        assert int(calibration_samples(seen[0][number]).sum()) >= lines * 24
    assert not bool(seen[1][torch.stack([calibration_samples(m) for m in batch.mask])].all())
    assert bool((seen[0].sum((1, 2)) < batch.mask.sum((1, 2))).all())
    for name in ("e2e_varnet", "varnet"):
        config = Config(DataConfig(["none"], []), scheme="ssdu", network=NetworkConfig(name, {}))
        assert scheme_of(config).calibration == (name == "e2e_varnet")


def test_lines_and_points_of_one_batch_are_split_each_in_its_way():
    mask = simulated(count=3).mask
    mask[1, 3, 5] = ~mask[1, 3, 5]  # a mask of points between two of lines
    chosen = split_samples(mask, 0.4, "lines", seeded())
    assert not (chosen & ~mask).any()
    for item in (0, 2):
        assert torch.equal(chosen[item], chosen[item, :, :1].expand(mask.shape[1:]))
        assert bool(chosen[item].any())
    assert not torch.equal(chosen[1], chosen[1, :, :1].expand(mask.shape[1:]))


def test_the_sensitivity_network_learns_from_the_block_that_it_will_be_given():
    batch = simulated((64, 64))
    whole = torch.stack([calibration_samples(mask) for mask in batch.mask])
    seen = []

    def reconstruct(part: Batch) -> torch.Tensor:
        seen.append(part.calibration)
        return part.b

    SSDU(0.4, "uniform", calibration=True).loss(reconstruct, batch, seeded())
    assert torch.equal(seen[0], whole)
    assert bool((whole.sum(2) > 24).any())  # the whole readout
    torch.manual_seed(0)
    network = E2EVarNet(1, 2, 2, 2, 2)
    blocks = []
    network.sens_net.register_forward_pre_hook(lambda module, given: blocks.append(given[1]))
    SSDU(0.4, "uniform", calibration=True).loss(
        lambda part: apply(network, part), batch, seeded())
    apply(network, batch)
    assert torch.equal(blocks[0], whole)
    assert torch.equal(blocks[1], whole)
    part = replace(batch, calibration=whole).part(torch.tensor([1]))
    assert torch.equal(part.calibration, whole[1:])


def test_shots_share_the_lines_that_were_acquired():
    batch = simulated((64, 64))
    mask = torch.zeros(2, 64, 64, dtype=torch.bool)
    mask[0, ::4], mask[1, 2::4] = True, True
    batch = batch.sampled(mask)
    batch = replace(batch, kspace=torch.randn(batch.kspace.shape, dtype=batch.kspace.dtype,
                                              generator=seeded(1)) * mask[:, None])
    disturbed = disturb_shots(batch, 1.0, 4, seeded())
    for item, first in ((0, 0), (1, 2)):
        moved = (disturbed.kspace - batch.kspace)[item].abs().amax((0, 2)) > 1e-3
        assert moved[first::4].tolist() == 4 * [False, True, True, True]
