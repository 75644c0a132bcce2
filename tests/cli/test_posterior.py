"""``snrecon posterior`` as a user types it, with a sampler put among the methods."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import torch
from torch import Tensor

from jumpy import Jumpy, register
from snrecon.data import Scan
from snrecon.uncertainty import SpreadMap

Run = Callable[..., object]


@pytest.fixture(autouse=True)
def jumpy(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


def test_a_result_file(snrecon: Run, scan_file: Path, out: Path) -> None:
    words = ("posterior", scan_file, "--method", "jumpy", "--samples", "5", "--seed", "3")
    done = snrecon(*words, "--out", out / "p.h5", "--keep")
    assert done.code == 0, done.err
    assert done.err == ""
    for text in ("jumpy", "5, seed 3", "at fixed data", "Student's t",
                 f"wrote {out / 'p.h5'}"):
        assert text in done.out
    result = SpreadMap.load(out / "p.h5")
    assert (result.count, result.seed, result.method) == (5, 3, "jumpy")
    # Five draws of SD 0.1 of the image: their variances average to it, 4 degrees of freedom each.
    where = result.magnitude > 0.2 * result.magnitude.max()
    ratio = (result.spread[where] / result.magnitude[where]).double() ** 2
    error = float(ratio.std()) / ratio.numel() ** 0.5
    assert abs(float(ratio.mean()) - 0.01) < 4 * error + 2e-4
    with h5py.File(out / "p.h5") as file:
        assert file["samples"].shape == (5, 32, 32)
        assert file.attrs["kind"] == "posterior"
    assert sorted(p.name for p in out.iterdir()) == ["p.h5"]
    again = snrecon(*words, "--out", out / "q.npz")
    assert again.code == 0
    torch.testing.assert_close(SpreadMap.load(out / "q.npz").spread, result.spread)


def test_a_state_is_resumed(snrecon: Run, scan_file: Path, out: Path) -> None:
    words = ("posterior", scan_file, "--method", "jumpy", "--state", out / "s.state")
    first = snrecon(*words, "--samples", "4", "--out", out / "a.h5")
    assert first.code == 0, first.err
    assert f"state {out / 's.state'}" in first.out
    more = snrecon(*words, "--samples", "7", "--level", "0.8", "--out", out / "b.h5")
    assert more.code == 0, more.err
    assert SpreadMap.load(out / "b.h5").count == 7
    wrong = snrecon(*words, "--samples", "7", "--seed", "1", "--out", out / "c.h5")
    assert wrong.code == 2
    assert "drawn with seed 0, not 1" in wrong.err


def test_progress_reaches_the_end(scan: Scan) -> None:
    from snrecon.uncertainty import posterior as sampled

    calls: list[tuple[int, int | None, str]] = []

    def report(done: int, total: int | None, message: str) -> None:
        calls.append((done, total, message))

    result = sampled(Jumpy(), scan, 3, progress=report)
    assert isinstance(result.mean, Tensor)
    assert calls[-1] == (3, 3, "posterior")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--method", "sense"), "sense is deterministic"),
        (("--method", "jumpy", "--samples", "1"), "at least 2"),
        (("--method", "jumpy", "--level", "95"), "must lie below 1"),
        (("--method", "jumpy", "--out", "p.txt"), "known format"),
    ],
)
def test_errors(
    snrecon: Run, scan_file: Path, out: Path, words: tuple[str, ...], sentence: str
) -> None:
    given = words if "--out" in words else (*words, "--out", out / "p.h5")
    done = snrecon("posterior", scan_file, *given)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert sentence in done.err
    assert list(out.iterdir()) == []
