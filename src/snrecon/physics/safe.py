"""Roots and quotients whose value and derivative at zero are zero instead of NaN.

Only zero is replaced: NaN stays NaN, so that a computation which failed is seen to have failed.
"""

from __future__ import annotations

import torch
from torch import Tensor


def safe_root(x: Tensor) -> Tensor:
    """Square root of ``x >= 0`` whose derivative at 0 is taken as zero."""
    zero = x <= 0  # false for NaN, as x > 0 would be
    return torch.where(zero, 0, torch.where(zero, 1, x).sqrt())


def safe_divide(x: Tensor, size: Tensor) -> Tensor:
    """``x / size``, and 0 where ``size`` is 0."""
    zero = size <= 0
    return torch.where(zero, 0, x / torch.where(zero, 1, size))


def transformed(x: Tensor) -> bool:
    """Whether ``x`` is within a transform of torch.func, whose values are not those of one call."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(x))


def may_overwrite(x: Tensor) -> bool:
    """Whether arithmetic on ``x`` may work in place: no graph is kept of it, and it is in no
    transform of torch.func, which wants every value once and takes what changes for impure."""
    graph = torch.is_grad_enabled() and x.requires_grad
    return not graph and not transformed(x)
