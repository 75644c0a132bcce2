"""The 95 % intervals of sketch and replicas cover, over seeds (200 seeds in ``make bench``)."""

from __future__ import annotations

import pytest
from benchmarks.coverage import run

NAMES = ("zero_filled", "sense lines", "homodyne", "grappa", "rss", "tv", "wavelet", "varnet")


@pytest.mark.parametrize("estimator", ["sketch", "replicas"])
@pytest.mark.parametrize("name", NAMES)
def test_intervals_cover(name: str, estimator: str) -> None:
    (found,) = run(seeds=20, passes=48, names=(name,), estimators=(estimator,))
    # The spread over seeds gives each coverage its own error bar, about 0.5 %.
    allowed = 4 * found.sigma_error + 0.005
    assert found.sigma == pytest.approx(0.95, abs=allowed)
    assert allowed < 0.045
    assert found.sigma_complex == pytest.approx(0.95, abs=0.04)
    assert found.stated_error == pytest.approx(found.relative_error, rel=0.1)
