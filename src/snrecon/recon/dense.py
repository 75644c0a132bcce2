"""Inverses of batches of small Hermitian matrices, as the exact SENSE solvers need them."""

from __future__ import annotations

import torch
from torch import Tensor

WORST_CONDITION = 1e12
"""Beyond this condition number (1-norm) a matrix counts as singular in double precision."""


def support_inverse(normal: Tensor, support: Tensor, lamda: float = 0.0) -> tuple[Tensor, float]:
    """``(normal + lamda)^-1`` on the support and exactly zero off it.

    Cholesky factors where the matrix is well conditioned; where it is not, the pseudo-inverse,
    which takes eigenvalues below ``1 / WORST_CONDITION`` of the largest as zero.

    Args:
        normal: ``(..., n, n)`` complex128, Hermitian, positive semidefinite.
        support: ``(..., n)`` boolean; rows and columns off it must be zero in ``normal``.
        lamda: Added to the diagonal.

    Returns:
        The inverses ``(..., n, n)``, and the largest condition number met on the supports.
    """
    n = normal.shape[-1]
    shape = normal.shape
    normal, support = normal.reshape(-1, n, n), support.reshape(-1, n)
    diagonal = normal.diagonal(dim1=-2, dim2=-1).real
    size = diagonal.sum(-1) / support.sum(-1).clamp(min=1)
    size = torch.where(size > 0, size, torch.ones_like(size))
    # Voxels off the support get a harmless entry of the usual size; it is taken out again below.
    filled = torch.where(support, lamda, size[:, None] + lamda)
    shifted = normal + torch.diag_embed(filled.to(normal.dtype))
    factor, info = torch.linalg.cholesky_ex(shifted)
    eye = torch.eye(n, dtype=factor.dtype, device=factor.device)
    failed = (info != 0) | ~(factor.diagonal(dim1=-2, dim2=-1).real > 0).all(dim=-1)
    inverse = torch.cholesky_inverse(torch.where(failed[:, None, None], eye, factor))
    condition = torch.linalg.matrix_norm(shifted, 1) * torch.linalg.matrix_norm(inverse, 1)
    bad = failed | ~torch.isfinite(condition) | (condition > WORST_CONDITION)
    worst = float(condition[~bad].max()) if bool((~bad).any()) else 1.0
    if bool(bad.any()):
        values, vectors = torch.linalg.eigh(shifted[bad])
        kept = values > values[:, -1:] / WORST_CONDITION
        weights = torch.where(kept, 1 / torch.where(kept, values, 1), 0).to(vectors.dtype)
        inverse[bad] = (vectors * weights[:, None, :]) @ vectors.mH
        lowest = torch.where(kept, values, values[:, -1:]).amin(dim=1)
        worst = max(worst, float((values[:, -1] / lowest).max()))
    both = support[:, :, None] & support[:, None, :]
    return torch.where(both, inverse, 0).reshape(shape), worst
