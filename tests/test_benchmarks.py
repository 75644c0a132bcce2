"""The measures of the benchmarks, against formulas by hand and maps whose agreement is known."""

from __future__ import annotations

import math

import pytest
import torch
from benchmarks import agreement, estimator_report, estimators, noise_scan, repeats, scores
from torch import Tensor

from snrecon.data import NoiseMap


def test_ssim_by_its_formula() -> None:
    """Uniform 7 x 7 windows and the unbiased covariance, as fastMRI takes it."""
    generator = torch.Generator().manual_seed(0)
    g, p = torch.rand(2, 20, 22, generator=generator, dtype=torch.float64).unbind()
    head = torch.zeros(20, 22, dtype=torch.bool)
    head[5:9, 6:12] = True
    values = []
    top = float(g[head].max())
    for y, x in torch.nonzero(head).tolist():
        a, b = (v[y - 3 : y + 4, x - 3 : x + 4].flatten() for v in (g, p))
        covariance = torch.cov(torch.stack([a, b]))
        c1, c2 = (0.01 * top) ** 2, (0.03 * top) ** 2
        luminance = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
        structure = (2 * covariance[0, 1] + c2) / (covariance[0, 0] + covariance[1, 1] + c2)
        values.append(float(luminance * structure))
    found = scores.score(p, g, head)["ssim"]
    assert found == pytest.approx(sum(values) / len(values), rel=1e-6)


def test_fourth_difference_has_unit_response() -> None:
    generator = torch.Generator().manual_seed(1)
    white = torch.randn(400, 400, generator=generator)
    for axis in (0, 1):
        difference = noise_scan.fourth_difference(white, axis)
        inner = difference[4:-4, 4:-4]
        assert float(inner.std()) == pytest.approx(1, abs=0.02)
        assert noise_scan.robust_sd(inner.flatten()) == pytest.approx(1, abs=0.02)
        cubic = torch.linspace(-1, 1, 60, dtype=torch.float64) ** 3
        grid = cubic[:, None] + cubic[None, :]
        assert float(noise_scan.fourth_difference(grid, axis)[3:-3, 3:-3].abs().max()) < 1e-12


def sampled_map(sigma: Tensor, passes: int, seed: int) -> NoiseMap:
    """A map of sigma as ``passes`` Gaussian samples would give it, with its standard error."""
    generator = torch.Generator().manual_seed(seed)
    draws = sigma * torch.randn(passes, *sigma.shape, dtype=torch.float64, generator=generator)
    found = draws.square().mean(0).sqrt()
    image = 30 * sigma
    return NoiseMap(
        image, found, found, image / found, standard_error=found / math.sqrt(2 * passes)
    )


def test_agreement_corrects_for_sampling_error() -> None:
    """Two estimates of one smooth map: raw correlation at its ceiling, corrected 1."""
    y, x = torch.meshgrid(*(torch.linspace(-3, 3, 96, dtype=torch.float64),) * 2, indexing="ij")
    sigma = 1 + 0.15 * torch.sin(2 * x) * torch.cos(y)
    where = torch.ones_like(sigma, dtype=torch.bool)
    both = agreement.compare(sampled_map(sigma, 60, 1), sampled_map(sigma, 60, 2), where)
    error = 1 / math.sqrt(120)
    variation = float(sigma.std() / sigma.mean())
    assert both["error"][0] == pytest.approx(error, rel=0.03)
    assert both["variation"] == pytest.approx(variation, rel=0.05)
    assert both["ceiling"] == pytest.approx(1 / (1 + (error / variation) ** 2), rel=0.03)
    assert both["raw"] == pytest.approx(both["ceiling"], abs=0.03)
    assert both["corrected"] == pytest.approx(1, abs=4 * both["corrected_error"] + 1e-3)
    assert 0 < both["corrected_error"] < 0.03
    assert both["ratio"] == pytest.approx(1, abs=4 * both["ratio_error"] + 1e-3)


def test_agreement_sees_maps_that_differ() -> None:
    """Half of the variance of one map is not in the other; its mean is 5 % higher."""
    generator = torch.Generator().manual_seed(5)
    shared, own = torch.randn(2, 96, 96, dtype=torch.float64, generator=generator).unbind()
    first = 1 + 0.1 * shared
    second = 1.05 * (1 + 0.1 * (shared + own) / 2**0.5)
    where = torch.ones_like(shared, dtype=torch.bool)
    both = agreement.compare(sampled_map(first, 400, 3), sampled_map(second, 400, 4), where)
    assert both["corrected"] == pytest.approx(0.5**0.5, abs=0.03)
    assert both["ratio"] == pytest.approx(1 / 1.05, abs=0.005)


def test_paired_interval() -> None:
    """Against the table of Student's t: 2.776 for four degrees of freedom."""
    mean, width = scores.interval(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).numpy())
    assert mean == pytest.approx(3)
    assert width == pytest.approx(2.776 * math.sqrt(2.5) / math.sqrt(5), rel=1e-3)


def test_climbing_finds_an_interior_optimum() -> None:
    asked = []

    def value(index: int) -> float:
        asked.append(index)
        return -((index - 7) ** 2)

    assert scores.climb(value, -2) == 7
    assert {6, 8} <= set(asked)


def test_linear_maps_have_no_gap_to_true_repeats() -> None:
    """Sketch and replicas of regularised SENSE at one measurement are the spread over repeats."""
    gap = repeats.measure("sense", 20.0, repeats=64, points=2, passes=24, size=48, cache=None)
    assert gap.sketch == pytest.approx(1, abs=4 * gap.sketch_error)
    assert gap.replicas == pytest.approx(1, abs=4 * gap.replicas_error)
    assert gap.sketch_error < 0.02
    assert gap.bias > 0


def test_peers_that_are_not_installed_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import peer_networks

    monkeypatch.setattr(peer_networks, "PEERS", {"no_such_peer": lambda scan: []})
    monkeypatch.setattr("sys.argv", ["peer_networks"])
    peer_networks.main()
    assert "Not installed: no_such_peer." in capsys.readouterr().out


def test_passes_to_an_error_lie_on_a_logarithmic_line() -> None:
    """An error of 1 / sqrt(n) reaches 10 % at 100 passes, wherever it was measured."""
    errors: list[float | None] = [1 / n**0.5 for n in estimators.COUNTS]
    assert estimator_report.passes_to(errors, 0.1) == pytest.approx(100)
    assert estimator_report.passes_to(errors, 0.01) is None
    assert estimator_report.passes_to([None, *errors[1:]], 0.1) == pytest.approx(100)
    assert estimator_report.passes_to([None] * len(errors), 0.1) is None
    assert estimator_report.passes_to(errors, 0.9) == estimators.COUNTS[0]  # it was there at once
