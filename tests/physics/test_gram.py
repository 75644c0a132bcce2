"""Fast Gram forms against A^H A applied step by step."""

from __future__ import annotations

import pytest
import torch

from snrecon.physics import gram as module
from snrecon.physics.gram import (
    FourierGram,
    LineGram,
    boxed,
    encoding_gram,
    from_lines,
    support_box,
    to_lines,
    unboxed,
    varying_axes,
)
from snrecon.physics.masks import make_mask
from snrecon.physics.operators import Encoding, dense
from support import random_complex

KINDS = {
    (8, 6): ["random", "regular", "poisson", "partial_fourier"],
    (4, 8, 6): ["random", "poisson", "equispaced", "gaussian2d"],
}
CASES = [(grid, kind) for grid, kinds in KINDS.items() for kind in kinds]


def rate(kind: str) -> float:
    return 1.6 if kind == "partial_fourier" else 2.0


@pytest.mark.parametrize(("grid", "kind"), CASES)
def test_gram_is_the_encoding_and_its_adjoint(grid: tuple[int, ...], kind: str) -> None:
    mask = make_mask(kind, grid, rate(kind), seed=1).tensor
    encoding = Encoding(random_complex(3, *grid), mask)
    slow = dense(encoding.H @ encoding)
    forms = [encoding.gram, FourierGram(encoding.maps, mask)]
    axes = tuple(range(-len(grid), 0))
    forms.append(FourierGram(encoding.maps, mask, axes))
    if len(varying_axes(mask)) == 1:
        forms.append(LineGram(encoding.maps, mask, varying_axes(mask)[0]))
    for form in forms:
        torch.testing.assert_close(dense(form), slow, rtol=1e-11, atol=1e-11)
        x = random_complex(2, 3, *grid)
        torch.testing.assert_close(form(x), encoding.H(encoding(x)), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("axis", [-1, -2, -3])
def test_lines_may_run_along_any_axis(axis: int) -> None:
    grid = (4, 5, 6)
    mask = torch.zeros(grid, dtype=torch.bool)
    mask.movedim(axis, 0)[[0, 2, 3]] = True
    encoding = Encoding(random_complex(3, *grid), mask)
    assert varying_axes(mask) == (axis,)
    found = encoding_gram(encoding.maps, mask)
    assert isinstance(found, LineGram)
    torch.testing.assert_close(dense(found), dense(encoding.H @ encoding), rtol=1e-11, atol=1e-11)


def test_full_and_empty_sampling() -> None:
    maps = random_complex(3, 4, 5)
    weight = maps.abs().square().sum(0)
    x = random_complex(2, 4, 5)
    full = encoding_gram(maps, torch.ones(4, 5, dtype=torch.bool))
    torch.testing.assert_close(full(x), weight * x)
    empty = encoding_gram(maps, torch.zeros(4, 5, dtype=torch.bool))
    assert bool((empty(x) == 0).all())


def test_choice_of_form(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = random_complex(2, 8, 6)
    lines = make_mask("regular", (8, 6), 2).tensor
    plane = make_mask("poisson", (8, 6), 2).tensor
    assert isinstance(encoding_gram(maps, lines), LineGram)
    assert isinstance(encoding_gram(maps, plane), FourierGram)
    monkeypatch.setattr(module, "DENSE_LIMIT", 100)
    assert isinstance(encoding_gram(maps, lines), FourierGram)


def test_line_matrix_is_hermitian_and_bounded_by_the_maps() -> None:
    maps = random_complex(3, 8, 6)
    maps = maps / maps.abs().square().sum(0).sqrt()
    matrix = LineGram(maps, make_mask("random", (8, 6), 2, seed=3).tensor, -2).matrix
    torch.testing.assert_close(matrix, matrix.mH)
    values = torch.linalg.eigvalsh(matrix)
    assert float(values.min()) > -1e-12
    assert float(values.max()) < 1 + 1e-12


@pytest.mark.parametrize("axis", [-1, -2, -3])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_lines_and_back(axis: int, batch: tuple[int, ...]) -> None:
    grid = (3, 4, 5)
    x = random_complex(*batch, *grid)
    lines = to_lines(x, axis, grid)
    count = 1
    for n in batch:
        count *= n
    assert lines.shape == (60 // grid[axis], grid[axis], count)
    torch.testing.assert_close(from_lines(lines, x, axis, grid), x)
    # Line 0 starts at the first voxel and runs along the axis.
    first = x[(0,) * len(batch)].movedim(axis, -1).reshape(-1, grid[axis])[0]
    torch.testing.assert_close(lines[0, :, 0], first)


@pytest.mark.parametrize("axis", [-1, -2, -3])
def test_lines_of_a_box_are_those_of_the_grid(axis: int) -> None:
    grid = (5, 6, 7)
    mask = torch.zeros(grid, dtype=torch.bool)
    mask.movedim(axis, 0)[[0, 2, 3]] = True
    maps = torch.zeros(3, *grid, dtype=torch.complex128)
    maps[:, 1:4, 2:6, 3:6] = random_complex(3, 3, 4, 3)
    box = support_box(maps)
    assert box == (slice(1, 4), slice(2, 6), slice(3, 6))
    form = LineGram(maps, mask, axis, box)
    assert form.matrix.shape[-1] == form.matrix.shape[-2] == {-1: 3, -2: 4, -3: 3}[axis]
    whole = FourierGram(maps, mask)
    torch.testing.assert_close(dense(form), dense(whole), rtol=1e-11, atol=1e-11)
    x = random_complex(2, 3, *grid)
    torch.testing.assert_close(form(x), whole(x), rtol=1e-11, atol=1e-11)
    product = torch.func.vmap(form)(x)
    torch.testing.assert_close(product, whole(x), rtol=1e-11, atol=1e-11)
    _, tangent = torch.func.jvp(form, (x,), (2 * x,))
    torch.testing.assert_close(tangent, 2 * whole(x), rtol=1e-11, atol=1e-11)


def test_boxes_are_cut_and_put_back() -> None:
    x = random_complex(2, 3, 4, 5)
    box = (slice(1, 3), slice(0, 4))
    assert boxed(x, box).shape == (2, 3, 2, 4)
    back = unboxed(boxed(x, box), box, (4, 5))
    torch.testing.assert_close(back[..., 1:3, :4], x[..., 1:3, :4])
    assert int((back != 0).sum()) == 6 * 8
    assert support_box(torch.zeros(2, 4, 5)) == (slice(0, 1), slice(0, 1))
    assert support_box(torch.ones(2, 4)) == (slice(0, 4),)
