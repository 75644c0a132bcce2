"""What computations hold in memory, and what there is of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Result = TypeVar("Result")


class _Meter(TorchDispatchMode):
    """Counts the bytes of tensors that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._watch(leaf)
        return out

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def peak_bytes(run: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """Result of ``run()`` and the peak of bytes of tensors that it held at once."""
    meter = _Meter()
    with meter:
        result = run()
    return result, meter.peak


def held_bytes(run: Callable[[], Result]) -> tuple[Result, int]:
    """Result of ``run()`` and the bytes of tensors that it made and that are still alive."""
    meter = _Meter()
    with meter:
        result = run()
    return result, meter.live


def _cached(statistics: Path) -> int:
    """Bytes of files that a container holds in memory, and lets go when it is needed."""
    for line in statistics.read_text().splitlines():
        if line.startswith("inactive_file "):
            return int(line.split()[1])
    return 0


def available_bytes(device: torch.device) -> int:
    """Memory that may be taken on ``device``: free GPU memory, or what the system (and its
    container) has left."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept  # what torch holds for later use
    amounts = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                amounts.append(int(line.split()[1]) * 1024)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        if limit != "max":
            amounts.append(max(int(limit) - used + _cached(Path("/sys/fs/cgroup/memory.stat")), 0))
    except (OSError, ValueError, IndexError):
        pass
    return min(amounts) if amounts else 2**31
