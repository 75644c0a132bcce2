"""Low precision where it is enough: in tangents.

A tangent carries no large signal from which a small difference is to be told, as Monte Carlo has
to, so that half the digits lose nothing: what bfloat16 leaves out of a noise map is far below its
sampling error. Networks ask :func:`lowered` for the precision of their convolutions' tangents;
operating points, Fourier transforms and everything else stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor

_LOW: ContextVar[torch.dtype | None] = ContextVar("low precision of tangents", default=None)


@contextmanager
def low_precision(dtype: torch.dtype | None = torch.bfloat16) -> Iterator[None]:
    """Tangents of convolutions in ``dtype`` within; None changes nothing."""
    token = _LOW.set(dtype)
    try:
        yield
    finally:
        _LOW.reset(token)


def lowered(tangents: Tensor) -> Tensor:
    """Single-precision tangents in the precision asked for; others unchanged."""
    dtype = _LOW.get()
    return tangents if dtype is None or tangents.dtype != torch.float32 else tangents.to(dtype)


def low_precision_pays(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 faster than single precision: CPUs with AVX512-BF16
    or AMX, GPUs with tensor cores for it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
