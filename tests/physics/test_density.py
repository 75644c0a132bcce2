"""How densely a mask samples, against masks whose density is known."""

from __future__ import annotations

import torch

from snrecon.physics.density import sampling_density


def test_density_of_masks() -> None:
    assert bool((sampling_density(torch.ones(6, 7, dtype=torch.bool)) == 1).all())
    regular = torch.zeros(60, 4, dtype=torch.bool)
    regular[::3] = True
    third = torch.full((40, 4), 1 / 3, dtype=torch.float64)
    assert torch.allclose(sampling_density(regular)[10:-10], third, rtol=0.02)
    dense = regular.clone()
    dense[24:36] = True
    found = sampling_density(dense)
    assert found[30, 0] > 0.85
    assert found[3, 0] < 0.45
