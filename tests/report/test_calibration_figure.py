"""The figure of calibrations, and the text of a spread map."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from snrecon.errors import InputError
from snrecon.report.calibration_figure import calibration_figure
from snrecon.report.spread_text import describe_spread
from snrecon.uncertainty import Calibration, Estimate, SpreadMap, calibration
from snrecon.uncertainty.sample_moments import SampleMoments


def found(seed: int, truth: float, sd: float = 1.0) -> Calibration:
    generator = torch.Generator().manual_seed(seed)
    claimed = sd * 30 ** torch.rand(48, 48, generator=generator)
    reference = torch.full((48, 48), 500.0)
    error = truth * claimed * torch.randn(48, 48, generator=generator)
    return calibration(Estimate(reference, reference + error, claimed), block=8)


def test_methods_side_by_side(tmp_path: Path) -> None:
    methods = {"score": found(0, 1.0), "langevin": found(1, 1.8), "varnet, dropout": found(2, 3.0)}
    path = calibration_figure(methods, tmp_path / "c.png", "calibration", "noise SD")
    with Image.open(path) as image:
        assert image.size == (1224, 588)
        colours = image.convert("RGB").getcolors(2**20)
    assert colours is not None
    shares = {colour: n / (1224 * 588) for n, colour in colours}
    assert shares[(255, 255, 255)] > 0.8  # black on white
    for colour in ((0, 114, 178), (213, 94, 0), (0, 158, 115)):
        assert shares.get(colour, 0) > 1e-4  # every method is drawn


def test_how_many_methods() -> None:
    one = found(0, 1.0)
    for methods in ({}, {str(k): one for k in range(8)}):
        with pytest.raises(InputError, match="1 to 7 methods"):
            calibration_figure(methods, "never.png")


@pytest.mark.parametrize("samples", [4, 40])
def test_text(samples: int) -> None:
    draws = torch.randn(samples, 8, 8, generator=torch.Generator().manual_seed(0))
    moments = SampleMoments.empty(10 + draws[0]).added(10 + draws)
    result = SpreadMap.of(moments, 0.95, method="score", seed=3, units="noise", frozen=("maps",))
    text = describe_spread(result)
    for words in ("score", f"{samples}, seed 3", "at fixed data", "maps", "0.95"):
        assert words in text
    assert ("Student's t" in text) == (samples == 4)
    nothing = SpreadMap.of(SampleMoments.empty(draws[0] * 0).added(draws * 0), 0.95)
    assert "0 everywhere" in describe_spread(nothing)
