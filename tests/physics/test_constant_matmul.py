"""The product that vmap must not break up."""

from __future__ import annotations

import pytest
import torch

from snrecon.physics.constant_matmul import constant_matmul
from support import random_complex


def test_transforms_are_the_product_and_its_adjoint() -> None:
    matrix = random_complex(3, 4, 5, seed=0)
    x, v = random_complex(3, 5, 2, seed=1), random_complex(3, 5, 2, seed=2)
    batch = random_complex(6, 3, 5, 2, seed=3)

    def f(columns: torch.Tensor) -> torch.Tensor:
        return constant_matmul(matrix, columns)

    torch.testing.assert_close(f(x), matrix @ x)
    value, tangent = torch.func.jvp(f, (x,), (v,))
    torch.testing.assert_close(value, matrix @ x)
    torch.testing.assert_close(tangent, matrix @ v)
    torch.testing.assert_close(torch.vmap(f)(batch), matrix @ batch)
    torch.testing.assert_close(
        torch.vmap(f, in_dims=3, out_dims=1)(batch.movedim(0, 3)), (matrix @ batch).movedim(0, 1)
    )
    nested = torch.vmap(torch.vmap(f))(torch.stack([batch, 2 * batch]))
    torch.testing.assert_close(nested, torch.stack([matrix @ batch, 2 * matrix @ batch]))
    cotangents = random_complex(6, 3, 4, 2, seed=4)
    pull = torch.func.vjp(f, x)[1]
    torch.testing.assert_close(torch.vmap(lambda u: pull(u)[0])(cotangents), matrix.mH @ cotangents)
    tangents = torch.vmap(lambda t: torch.func.jvp(f, (x,), (t,))[1])(batch)
    torch.testing.assert_close(tangents, matrix @ batch)


def test_matrices_are_constants() -> None:
    matrices = random_complex(2, 3, 4, 5)
    with pytest.raises(RuntimeError, match="mapped over"):
        torch.vmap(constant_matmul)(matrices, random_complex(2, 3, 5, 1))
