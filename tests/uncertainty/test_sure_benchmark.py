"""The measures of the benchmark of risk estimates."""

from __future__ import annotations

import pytest
import torch
from benchmarks.sure import Setting, choice, curve, measured


def test_goals_are_of_the_true_object() -> None:
    """With the true maps, what the noiseless data say is what the object says."""
    known = measured(Setting(4, True, 24))
    for kind, risk in known.risks.items():
        goal = known.goals[kind]
        assert torch.allclose(risk.image(known.truth), goal, atol=1e-4 * float(goal.abs().max()))
        assert known.error(kind, known.truth) < 1e-6 * known.signal(kind)
    assert known.error("image", known.truth) == 0
    other = measured(Setting(4, True, 24), 1)
    assert torch.equal(other.truth, known.truth)
    assert not torch.equal(other.scan.kspace, known.scan.kspace)


def test_lambda_against_the_truth() -> None:
    found = choice(measured(Setting(4, True, 24)), "sense")
    assert 1 <= found.regret < 1.05
    assert found.image >= 1
    assert found.tracked == pytest.approx(1, abs=4 * found.stated)
    assert found.stated < 0.5


def test_estimates_stand_beside_true_errors() -> None:
    known = measured(Setting(1, True, 24))
    (point,) = curve(known, "wavelet", [1.0])
    assert point.errors["projected"] == pytest.approx(point.errors["image"], rel=1e-4)
    estimate, error = point.estimates["projected"]
    assert estimate == pytest.approx(point.errors["projected"], rel=0.3)
    assert 0 < error < 0.1 * estimate
