"""How many probes fit at once: measured, not guessed."""

from __future__ import annotations

import torch

from snrecon.physics.memory import available_bytes, peak_bytes

CPU_CAP = 8
"""Most samples at once on a CPU, unless a reconstruction says that it gains from more."""
CPU_BYTES = 2**25
"""What a CPU should hold at once: about its last cache. Beyond it, the activations of a network
come from main memory, and the allocator asks the system for fresh pages every time."""
GPU_CAP = 256


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


__all__ = ["CPU_CAP", "available_bytes", "chunk_size", "peak_bytes"]
