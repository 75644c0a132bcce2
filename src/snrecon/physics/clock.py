"""Seconds of work on a device that does it in its own time."""

from __future__ import annotations

import time

import torch


def clock(device: torch.device | str) -> float:
    """Seconds, once all that was asked of the device is done."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
