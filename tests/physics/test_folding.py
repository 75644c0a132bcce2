"""The adjoint in one pass against the one step by step."""

from __future__ import annotations

import pytest
import torch

from snrecon.physics.folding import folding
from snrecon.physics.masks import make_mask
from snrecon.physics.operators import Encoding
from support import random_complex

CASES = [((8, 6), "random"), ((7, 5), "random"), ((8, 6), "poisson"), ((4, 8, 6), "random")]


@pytest.mark.parametrize(("grid", "kind"), CASES)
def test_folding_is_the_adjoint_of_whitened_encoding(grid: tuple[int, ...], kind: str) -> None:
    mask = make_mask(kind, grid, 1.6, seed=1).tensor
    maps, whitening = random_complex(3, *grid), random_complex(3, 3, seed=2)
    fold = folding(maps, whitening, mask)
    kspace = random_complex(2, 4, 3, *grid, seed=3)
    white = (whitening @ kspace.flatten(3)).reshape(kspace.shape)
    wanted = Encoding(maps, mask).H(white)
    torch.testing.assert_close(fold(kspace), wanted, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(torch.func.vmap(fold)(kspace), wanted, rtol=1e-11, atol=1e-11)
    _, tangent = torch.func.jvp(fold, (kspace,), (2 * kspace,))
    torch.testing.assert_close(tangent, 2 * wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["random", "poisson"])
def test_samples_that_were_not_taken_do_not_matter(kind: str) -> None:
    grid = (8, 6)
    mask = make_mask(kind, grid, 2, seed=1).tensor
    fold = folding(random_complex(3, *grid), torch.eye(3, dtype=torch.complex128), mask)
    kspace = random_complex(3, *grid, seed=3)
    torch.testing.assert_close(fold(kspace + 5 * ~mask), fold(kspace))
    assert float(fold(kspace).abs().min()) > 0
