"""Networks in training mode and functions that draw at random are refused; nobody's data change."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from benchmarks.small_problems import irregular_mask, small_scan
from torch import Tensor, nn

from snrecon.errors import InputError, SnreconWarning
from snrecon.noise import linearity_check, noise_map, psf, roi
from snrecon.recon.adapters import ImageModule
from snrecon.recon.zero_filled import ZeroFilled

SCAN = small_scan(irregular_mask())
IMAGE = ZeroFilled().bind(SCAN)


class Network(nn.Module):
    """A correction of the zero-filled image; ``layer`` stands between two convolutions."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), layer, nn.Tanh(), nn.Conv2d(4, 2, 3, padding=1)
        ).double()

    def forward(self, kspace: Tensor) -> Tensor:
        image = IMAGE(kspace)
        added = self.layers(torch.view_as_real(image).movedim(-1, 0)[None])[0]
        return image + torch.complex(added[0], added[1])


DROPPING = Network(nn.Dropout(0.3))


class Holder:
    """A reconstruction of one's own that holds a network."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def bind(self, scan: object, generator: object = None) -> Callable[[Tensor], Tensor]:
        return self.network

    def reconstruct(self, kspace: Tensor) -> Tensor:
        return self.network(kspace)


def closing_over(network: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda kspace: network(kspace)


def naming_a_global(kspace: Tensor) -> Tensor:
    return DROPPING(kspace)


@pytest.mark.parametrize("held", [
    DROPPING, Holder(DROPPING), Holder(DROPPING).network.forward, closing_over(DROPPING),
    naming_a_global, partial(DROPPING), partial(nn.Module.__call__, DROPPING)])
def test_dropout_that_is_on_is_refused(held):
    DROPPING.train()
    with pytest.raises(InputError, match=r"Network is in training mode.*Dropout draws.*eval\(\)"):
        noise_map(held, SCAN)
    with pytest.raises(InputError, match="training mode"):
        roi(held, SCAN, torch.ones(SCAN.grid, dtype=torch.bool))
    DROPPING.eval()
    assert noise_map(held, SCAN, tolerance=0, max_passes=8).estimator == "certified"


def test_statistics_that_every_image_changes_are_refused():
    network = Network(nn.BatchNorm2d(4))
    kept = network.layers[1].running_mean.clone()
    with pytest.raises(InputError, match=r"BatchNorm2d changes with every image"):
        noise_map(network, SCAN)
    assert torch.equal(network.layers[1].running_mean, kept)
    noise_map(network.eval(), SCAN, tolerance=0, max_passes=8)
    images = ImageModule(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)))
    noise_map(images, SCAN, tolerance=0, max_passes=8)
    images._module.train()
    with pytest.raises(InputError, match="training mode"):
        noise_map(images, SCAN, tolerance=0, max_passes=8)


@pytest.mark.parametrize("layer", [
    nn.Dropout(0.0), nn.BatchNorm2d(4, track_running_stats=False), nn.InstanceNorm2d(4)])
def test_training_mode_that_changes_nothing_is_allowed(layer):
    noise_map(Network(layer), SCAN, tolerance=0, max_passes=8)


@pytest.mark.parametrize("estimator", ["auto", "sketch", "replicas"])
def test_functions_that_draw_at_random_have_no_noise_map(estimator):
    def f(kspace: Tensor) -> Tensor:
        return nn.functional.dropout(torch.view_as_real(IMAGE(kspace)), 0.2).norm(dim=-1)

    with pytest.raises(InputError, match="draws at random"):
        noise_map(f, SCAN, estimator=estimator, tolerance=0, max_passes=8)


def test_repeating_costs_one_evaluation():
    calls = []

    def f(kspace: Tensor) -> Tensor:
        calls.append(1)
        return IMAGE(kspace) * IMAGE(kspace).abs()

    noise_map(f, SCAN, estimator="replicas", tolerance=0, max_passes=8)
    assert len(calls) == 8 + 2


def in_place(kspace: Tensor) -> Tensor:
    """Twice the image, squared in modulus, by writing into its argument."""
    kspace *= 2
    kspace[:, ::4] = 0
    image = IMAGE(kspace)
    return image * image.abs()


def out_of_place(kspace: Tensor) -> Tensor:
    keep = torch.arange(kspace.shape[1]) % 4 != 0
    image = IMAGE(2 * kspace * keep[:, None])
    return image * image.abs()


class InPlace:
    """The same as a method that binds."""

    def bind(self, scan: object) -> Callable[[Tensor], Tensor]:
        return in_place


@pytest.mark.parametrize("recon", [in_place, InPlace()])
@pytest.mark.parametrize(
    "estimator", ["exact", "sketch", "certified", "corrected", "replicas"])
def test_functions_that_write_into_their_argument_change_nothing(estimator, recon):
    scan = small_scan(irregular_mask())
    kspace = scan.kspace.clone()
    options = {"estimator": estimator, "tolerance": 0, "max_passes": 32}
    found = noise_map(recon, scan, **options)
    assert torch.equal(scan.kspace, kspace)
    expected = noise_map(out_of_place, scan, **options)
    torch.testing.assert_close(found.image, expected.image)
    torch.testing.assert_close(found.sigma, expected.sigma)


def test_checks_and_functionals_leave_the_scan_alone():
    scan = small_scan(irregular_mask())
    kspace = scan.kspace.clone()
    region = torch.ones(scan.grid, dtype=torch.bool)
    assert roi(in_place, scan, region).sd == pytest.approx(roi(out_of_place, scan, region).sd)
    pattern = psf(in_place, scan, (6, 6))
    torch.testing.assert_close(pattern, psf(out_of_place, scan, (6, 6)))
    first, second = (linearity_check(f, scan, draws=2) for f in (in_place, out_of_place))
    torch.testing.assert_close(first.residual, second.residual)
    assert torch.equal(scan.kspace, kspace)


@pytest.mark.parametrize("estimator", ["replicas", "auto"])
def test_a_function_that_writes_to_one_array_again_and_again(estimator):
    buffer = torch.zeros(SCAN.grid, dtype=torch.complex128)

    def into_buffer(kspace: Tensor) -> Tensor:
        buffer.copy_(torch.from_numpy(IMAGE(kspace).numpy()))
        return buffer

    options = {"tolerance": 0, "max_passes": 12, "seed": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SnreconWarning)  # it cannot be differentiated
        found = noise_map(into_buffer, SCAN, estimator=estimator, **options)
    wanted = noise_map(IMAGE.function, SCAN, estimator="replicas", **options)
    torch.testing.assert_close(found.sigma, wanted.sigma)
    assert float(found.sigma.max()) > 0


def test_a_conjugated_image_is_an_image():
    found = noise_map(lambda kspace: IMAGE(kspace).conj(), SCAN, estimator="sketch",
                      tolerance=0, max_passes=8)
    wanted = noise_map(IMAGE.function, SCAN, estimator="sketch", tolerance=0, max_passes=8)
    torch.testing.assert_close(found.sigma, wanted.sigma)
    assert not found.image.is_conj()


@pytest.mark.parametrize("estimator", ["auto", "replicas", "sketch"])
def test_whole_numbers_are_no_image(estimator):
    with pytest.raises(InputError, match=r"whole numbers \(torch\.int16\)"):
        noise_map(lambda kspace: (100 * IMAGE(kspace).abs()).to(torch.int16), SCAN,
                  estimator=estimator, tolerance=0, max_passes=8)


def test_single_precision_within_double_precision_data_is_differentiated():
    """Of a bright object, whose noise is next to the rounding of single precision."""
    bright = replace(SCAN, kspace=3000 * SCAN.kspace)

    def single(kspace: Tensor) -> Tensor:
        image = IMAGE.function(kspace).to(torch.complex64)
        return image * (1 + 1e-9 * image.abs())

    with warnings.catch_warnings():
        warnings.simplefilter("error", SnreconWarning)
        noise_map(single, bright, estimator="sketch", tolerance=0, max_passes=4)


def test_an_error_without_words_is_named():
    class Silent(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, gradient):
            raise NotImplementedError

    with pytest.raises(InputError, match="NotImplementedError"):
        noise_map(lambda kspace: Silent.apply(IMAGE(kspace)), SCAN, estimator="exact")
