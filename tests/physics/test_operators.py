"""Every linear operator: adjoint, batching, torch.func, and a dense matrix built in numpy."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np
import pytest
import torch

from snrecon.data import NoiseModel
from snrecon.physics.differences import Gradient
from snrecon.physics.gram import FourierGram, LineGram
from snrecon.physics.operators import (
    Encoding,
    Fourier,
    Identity,
    LinearOperator,
    Sampling,
    Sensitivity,
    dense,
)
from snrecon.physics.thermal import NoiseColouring
from snrecon.physics.wavelets import Wavelet
from support import check_linear_operator, check_transforms, random_complex

GRIDS = [(6, 5), (4, 3, 6)]
COILS = 3


def maps(grid: tuple[int, ...]) -> torch.Tensor:
    return random_complex(COILS, *grid, seed=10)


def mask(grid: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    found = torch.rand(grid, generator=generator) < 0.6
    assert bool(found.any())
    assert not bool(found.all())
    return found


def line_mask(grid: tuple[int, ...]) -> torch.Tensor:
    lines = torch.zeros(grid, dtype=torch.bool)
    lines.movedim(-2, 0)[::2] = True
    return lines


def coloured(grid: tuple[int, ...]) -> NoiseColouring:
    root = random_complex(COILS, COILS, seed=11)
    spectrum = torch.linspace(0.5, 1.5, grid[-1], dtype=torch.float64)
    return NoiseColouring(NoiseModel(root @ root.mH + torch.eye(COILS), spectrum), mask(grid))


OPERATORS: dict[str, Callable[[tuple[int, ...]], LinearOperator]] = {
    "identity": lambda g: Identity(g),
    "fourier": lambda g: Fourier((COILS, *g), len(g)),
    "fourier of the grid": lambda g: Fourier(g),
    "sensitivity": lambda g: Sensitivity(maps(g)),
    "sampling": lambda g: Sampling(mask(g), (COILS, *g)),
    "sampling of the grid": lambda g: Sampling(mask(g)),
    "encoding": lambda g: Encoding(maps(g), mask(g)),
    "line encoding": lambda g: Encoding(maps(g), line_mask(g)),
    "encoding gram": lambda g: Encoding(maps(g), mask(g)).gram,
    "fourier gram": lambda g: FourierGram(maps(g), mask(g)),
    "line gram": lambda g: LineGram(maps(g), line_mask(g), -2),
    "adjoint": lambda g: Encoding(maps(g), mask(g)).H,
    "composition": lambda g: Fourier((COILS, *g), len(g)) @ Sensitivity(maps(g)),
    "sum": lambda g: Encoding(maps(g), mask(g)) + Encoding(maps(g).flip(0), line_mask(g)),
    "scaled": lambda g: (0.3 - 2j) * Encoding(maps(g), mask(g)),
    "gradient": lambda g: Gradient(g),
    "wavelet": lambda g: Wavelet(g, "db2", 1),
    "noise": coloured,
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", OPERATORS)
def test_adjoint_batches_and_gram(name: str, grid: tuple[int, ...]) -> None:
    check_linear_operator(OPERATORS[name](grid))
    check_linear_operator(OPERATORS[name](grid).H)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", OPERATORS)
def test_torch_func(name: str, grid: tuple[int, ...]) -> None:
    check_transforms(OPERATORS[name](grid))


@pytest.mark.parametrize("grid", GRIDS)
def test_single_precision_stays_single(grid: tuple[int, ...]) -> None:
    x, y = random_complex(2, *grid), random_complex(2, COILS, *grid)
    single = maps(grid).to(torch.complex64)
    pairs = [
        (Encoding(single, mask(grid)), Encoding(maps(grid), mask(grid)), x),
        (Encoding(single, mask(grid)).gram, Encoding(maps(grid), mask(grid)).gram, x),
        (LineGram(single, line_mask(grid), -2), LineGram(maps(grid), line_mask(grid), -2), x),
        (Fourier(grid), Fourier(grid), x),
        (Gradient(grid), Gradient(grid), x),
        (Wavelet(grid, "db2", 1), Wavelet(grid, "db2", 1), x),
        (coloured(grid), coloured(grid), y),
    ]
    for low, high, value in pairs:
        found = low(value.to(torch.complex64))
        assert found.dtype == torch.complex64, low
        torch.testing.assert_close(found.to(torch.complex128), high(value), rtol=1e-4, atol=1e-4)


def centred_dft(n: int) -> np.ndarray:
    k = np.arange(n) - n // 2
    return np.exp(-2j * np.pi * np.outer(k, k) / n) / np.sqrt(n)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", [mask, line_mask])
def test_encoding_is_the_matrix_written_in_numpy(grid: tuple[int, ...], kind: Callable) -> None:
    sampled = kind(grid)
    fourier = reduce(np.kron, [centred_dft(n) for n in grid])
    rows = [
        sampled.numpy().ravel()[:, None] * fourier * s.numpy().ravel()[None] for s in maps(grid)
    ]
    wanted = np.concatenate(rows)
    operator = Encoding(maps(grid), sampled)
    np.testing.assert_allclose(dense(operator).numpy(), wanted, atol=1e-12)
    np.testing.assert_allclose(dense(operator.H).numpy(), wanted.conj().T, atol=1e-12)
    np.testing.assert_allclose(dense(operator.gram).numpy(), wanted.conj().T @ wanted, atol=1e-12)


def test_encoding_is_its_factors() -> None:
    grid = GRIDS[0]
    factors = Sampling(mask(grid), (COILS, *grid)) @ Fourier((COILS, *grid), 2) @ Sensitivity(
        maps(grid)
    )
    torch.testing.assert_close(dense(factors), dense(Encoding(maps(grid), mask(grid))))


def test_gram_of_simple_operators() -> None:
    grid = GRIDS[0]
    for operator in (Fourier(grid), Sampling(mask(grid)), Wavelet(grid, "db2", 1)):
        matrix = dense(operator)
        torch.testing.assert_close(dense(operator.gram), matrix.mH @ matrix)


def test_wrong_shapes_are_named() -> None:
    operator = Encoding(maps((6, 5)), mask((6, 5)))
    with pytest.raises(ValueError, match=r"Encoding\(6x5 -> 3x6x5\) takes arrays of shape"):
        operator(random_complex(6, 4))
    with pytest.raises(ValueError, match="takes arrays"):
        operator(random_complex(5))
    with pytest.raises(ValueError, match="cannot compose"):
        operator @ operator
    with pytest.raises(ValueError, match="cannot add"):
        operator + operator.H
    with pytest.raises(ValueError, match="different grids"):
        Encoding(maps((6, 5)), mask((4, 3, 6)))
