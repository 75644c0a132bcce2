"""Small images to train on."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:48j, -1:1:40j]
    head = (x / 0.7) ** 2 + (y / 0.85) ** 2 < 1
    inner = (x / 0.3) ** 2 + (y / 0.4) ** 2 < 1
    volume = (500 * head + 400 * inner) * (1 + 0.2 * rng.random((6, 48, 40)))
    np.savez(tmp_path / "heads.npz", x=volume.astype(np.uint16))
    return f"{tmp_path / 'heads.npz'}:x"
