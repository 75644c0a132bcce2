"""A scan in SNR units against its forward model."""

from __future__ import annotations

import pytest
import torch

from snrecon.data import NoiseModel, Scan
from snrecon.physics.gram import FourierGram, LineGram
from snrecon.physics.masks import make_mask
from snrecon.recon import snr_units as module
from snrecon.recon.snr_units import SnrUnits
from snrecon.recon.varnet import VarNet
from support import random_complex

GRID = (10, 8)


def scan(kind: str) -> Scan:
    """With given maps that end before the grid does."""
    maps = torch.zeros(3, *GRID, dtype=torch.complex128)
    maps[:, 1:9, 2:7] = random_complex(3, 8, 5)
    root = random_complex(3, 3, seed=4)
    mask = make_mask(kind, GRID, 2, seed=1).tensor
    noise = NoiseModel(root @ root.mH + torch.eye(3))
    return Scan(random_complex(3, *GRID, seed=5), mask, maps=maps, noise=noise)


@pytest.mark.parametrize(("kind", "form"), [("random", LineGram), ("poisson", FourierGram)])
def test_gram_and_adjoint_are_those_of_the_whitened_measurement(kind: str, form: type) -> None:
    chosen = scan(kind)
    units = SnrUnits.of(chosen)
    gram = units.gram
    assert isinstance(gram, form)
    model = units.model
    image = random_complex(2, *GRID, seed=6)
    encoded = model.encoding(image * units.inverse)
    wanted = model.encoding.H(encoded) * units.inverse
    torch.testing.assert_close(gram(image), wanted, rtol=1e-10, atol=1e-10)
    noisy = random_complex(2, 3, *GRID, seed=7)
    folded = model.encoding.H(model.whiten(noisy)) * units.inverse
    torch.testing.assert_close(units.adjoint(noisy), folded, rtol=1e-10, atol=1e-10)


def test_large_matrices_and_few_coils_take_fourier_transforms(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    units = SnrUnits.of(scan("random"))
    monkeypatch.setattr(module, "MATRIX_PER_COIL", 2)
    assert isinstance(units.gram, FourierGram)
    monkeypatch.setattr(module, "MATRIX_PER_COIL", 16)
    assert isinstance(units.gram, LineGram)
    monkeypatch.setattr(module, "MATRIX_LIMIT", 5 * 8 * 8 - 1)  # the box of the maps is 8 x 5
    assert isinstance(units.gram, FourierGram)


def test_where_matrices_are_read_several_images_go_together() -> None:
    assert VarNet().bind(scan("random")).at_once == 4
    assert VarNet().bind(scan("poisson")).at_once is None
