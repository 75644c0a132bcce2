"""What a computation leaves in memory."""

from __future__ import annotations

import torch

from snrecon.physics.memory import held_bytes


def test_what_is_kept_is_counted_and_what_was_let_go_is_not():
    def run():
        first = torch.ones(1000)
        second = (first * 2).half()
        return [second, torch.zeros(10, dtype=torch.float64)]

    kept, size = held_bytes(run)
    assert len(kept) == 2
    assert size == 2080
