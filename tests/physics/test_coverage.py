"""What counts as fully sampled."""

from __future__ import annotations

import pytest
import torch

from snrecon.physics.coverage import fully_sampled
from snrecon.physics.masks import MASK_KINDS, make_mask


def test_padding_is_no_undersampling() -> None:
    mask = torch.ones(20, 16, dtype=torch.bool)
    assert fully_sampled(mask)
    mask[:3], mask[-2:], mask[:, :4] = False, False, False
    assert fully_sampled(mask)
    mask[9] = False
    assert not fully_sampled(mask)
    assert not fully_sampled(torch.zeros(8, 8, dtype=torch.bool))


def test_half_of_the_lines_is() -> None:
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[8:] = True
    assert not fully_sampled(mask)


@pytest.mark.parametrize("kind", [kind for kind in MASK_KINDS if kind != "partial_fourier"])
def test_every_mask_is_undersampling(kind: str) -> None:
    assert not fully_sampled(make_mask(kind, (32, 32), 2, seed=1).tensor)
