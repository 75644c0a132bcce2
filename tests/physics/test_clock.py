"""The clock waits for a device and runs forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from snrecon.physics.clock import clock


def test_waits_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    begun = clock("cpu")
    assert asked == []
    assert clock(torch.device("cuda", 1)) >= begun
    assert asked == [torch.device("cuda", 1)]
