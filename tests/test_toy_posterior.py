"""The comparison of samplers with exact posteriors: right samples pass, wrong ones are measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks import cells, toy_posterior
from benchmarks.toy_posterior import Entry, build, compare, measure, share
from benchmarks.toy_problems import make_problem
from torch import Tensor


def images(vectors: Tensor, grid: tuple[int, int]) -> Tensor:
    real, imaginary = vectors.chunk(2, dim=1)
    return torch.complex(real, imaginary).unflatten(1, grid)


def test_exact_draws_have_no_bias_and_known_ones_are_found() -> None:
    grid = (6, 6)
    law = make_problem("gaussian", 0.1, 2, grid).law
    drawn = law.draw(4000, torch.Generator().manual_seed(1))
    right = compare(images(drawn, grid), law)
    assert right["bias_error"] == pytest.approx(4000**-0.5, rel=0.05)
    assert right["bias"] < right["bias_error"]
    assert abs(right["ratio"] - 1) < 4 * right["ratio_error"] < 0.03
    assert 0.95 < right["low"] < 1 < right["high"] < 1.05
    deviation = law.covariance.diagonal().sqrt()
    wrong = compare(images(law.mean + 1.2 * (drawn - law.mean) + 0.3 * deviation, grid), law)
    assert wrong["bias"] == pytest.approx(0.3, abs=0.03)
    assert wrong["ratio"] == pytest.approx(1.2 * right["ratio"], rel=1e-6)
    assert wrong["low"] == pytest.approx(1.2 * right["low"], rel=1e-6)
    size = compare(images(drawn, grid).abs(), law)
    assert size["bias"] < 0.05
    assert size["ratio"] == pytest.approx(1, abs=0.05)


def test_the_share_of_a_mode() -> None:
    problem = make_problem("mixture", 0.1, 1)
    drawn = images(problem.law.draw(3000, torch.Generator().manual_seed(2)), problem.scan.grid)
    both = share(drawn, problem)
    assert both is not None
    weights = problem.law.weights
    assert both[1] == pytest.approx(float(weights[2] + weights[3]), abs=4 * 0.5 / 20000**0.5)
    assert both[0] == pytest.approx(both[1], abs=4 * 0.5 / 3000**0.5)
    assert 0.5 < both[1] < 0.95  # the data say something: the prior says 0.4
    assert share(drawn.abs(), problem) is None


def test_methods_that_are_not_there_are_left_out() -> None:
    problem = make_problem("gaussian", 0.1, 1, (6, 6))
    assert build(Entry("none", "snrecon.recon.no_such_module", "Nothing"), problem) is None
    assert build(Entry("none", "snrecon.recon.langevin", "Nothing"), problem) is None
    mixture = make_problem("mixture", 0.1, 1, (6, 6))
    assert build(toy_posterior.ENTRIES[0], mixture) is None


def test_cells_are_kept_and_the_table_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "BUILD", tmp_path)
    entry = toy_posterior.ENTRIES[0]
    folder = tmp_path / "toy_posterior"
    found = measure(entry, "gaussian", 0.1, 60, (6, 6), folder)
    assert found is not None
    assert found["bias"] < 0.3
    monkeypatch.setattr(toy_posterior, "draw", lambda *_: pytest.fail("the cell was there"))
    again = measure(entry, "gaussian", 0.1, 60, (6, 6), folder)
    assert again == found
    text = toy_posterior.as_table([found])
    assert "| gaussian | 0.1 | exact: perturb and solve | 3 | - |" in text
