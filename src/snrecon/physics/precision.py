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
from typing import Any

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


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of single-precision numbers in single precision within, where GPUs would round their
    factors to TF32 (10 bits), as cuDNN's convolutions do by default.

    That is as good as any noise for one image, but not for the difference of two: rounding that
    changes from one to the other is larger than what a small step changes.
    """
    if not torch.cuda.is_available():
        yield
        return
    backends = torch.backends
    with _no_tf32(backends.cudnn, "conv"), _no_tf32(backends.cuda.matmul):
        yield


@contextmanager
def _no_tf32(backend: Any, operation: str = "") -> Iterator[None]:
    """Of one library. torch has two switches for it, and refuses to read the older one once
    somebody has used the newer one: that is then the one to turn."""
    name: str
    off: object
    try:
        before, name, off = backend.allow_tf32, "allow_tf32", False
    except RuntimeError:
        backend = getattr(backend, operation) if operation else backend
        before, name, off = backend.fp32_precision, "fp32_precision", "ieee"
    if before == off:
        yield
        return
    setattr(backend, name, off)
    try:
        yield
    finally:
        setattr(backend, name, before)


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
