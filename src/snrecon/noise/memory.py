"""How many probes fit at once: measured, not guessed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU_CAP = 8
"""Most samples at once on a CPU, unless a reconstruction says that it gains from more."""
CPU_BYTES = 2**25
"""What a CPU should hold at once: about its last cache. Beyond it, the activations of a network
come from main memory, and the allocator asks the system for fresh pages every time."""
GPU_CAP = 256


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


def available_bytes(device: torch.device) -> int:
    """Memory that may be taken on ``device``: free GPU memory, or what the system (and its
    container) has left."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    amounts = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                amounts.append(int(line.split()[1]) * 1024)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        if limit != "max":
            amounts.append(max(int(limit) - used, 0))
    except (OSError, ValueError, IndexError):
        pass
    return min(amounts) if amounts else 2**31


def chunk_size(
    bytes_per_probe: int, device: torch.device, at_once: int | None = None
) -> int:
    """Samples at once: a power of two within a quarter of the memory at hand.

    Args:
        bytes_per_probe: Peak of what one sample holds.
        device: Where it is drawn.
        at_once: How many suit a CPU; by default as many as stay near its caches, 8 at most.
    """
    if device.type == "cuda":
        cap = GPU_CAP
    else:
        cap = at_once or min(CPU_CAP, CPU_BYTES // max(bytes_per_probe, 1))
    fitting = available_bytes(device) // 4 // max(bytes_per_probe, 1)
    size = 1
    while size * 2 <= min(fitting, cap):
        size *= 2
    return size
