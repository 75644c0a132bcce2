"""``snrecon noise --dither``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from snrecon.data import NoiseMap

Run = Callable[..., object]


def test_off_by_default_and_marked(snrecon: Run, scan_file: Path, out: Path) -> None:
    words = ("noise", scan_file, "--method", "sense")
    plain = snrecon(*words, "--out", out / "plain.h5")
    noisy = snrecon(*words, "--dither", "0.5", "--out", out / "noisy.h5")
    assert (plain.code, noisy.code) == (0, 0), noisy.err
    assert "dithered" not in plain.out
    assert "1.118 sigma" in noisy.out
    one, two = (NoiseMap.load(out / name) for name in ("plain.h5", "noisy.h5"))
    assert one.dithered is None
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.sigma, two.sigma)
    assert not torch.equal(two.dithered, two.image)
    again = snrecon(*words, "--dither", "0.5", "--seed", "4", "--out", out / "other.h5")
    assert again.code == 0
    assert not torch.equal(NoiseMap.load(out / "other.h5").dithered, two.dithered)


def test_bad_fractions(snrecon: Run, scan_file: Path, out: Path) -> None:
    for value in ("0", "-1", "nan", "much"):
        done = snrecon("noise", scan_file, "--method", "sense", "--dither", value,
                       "--out", out / "r.h5")
        assert done.code == 2
        assert "--dither" in done.err
    assert list(out.iterdir()) == []
