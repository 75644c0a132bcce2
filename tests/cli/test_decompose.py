"""``snrecon decompose`` as a user types it, with a sampler put among the methods."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from jumpy import register
from snrecon.uncertainty import Decomposition
from snrecon.uncertainty.rounds import PARTS

Run = Callable[..., object]


@pytest.fixture(autouse=True)
def jumpy(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


def test_a_result_file(snrecon: Run, scan_file: Path, out: Path) -> None:
    region = np.zeros((32, 32), dtype=bool)
    region[12:20, 12:20] = True
    np.save(out.parent / "middle.npy", region)
    words = ("decompose", scan_file, "--method", "jumpy", "--rounds", "6", "--seeds", "3",
             "--seed", "2", "--region", f"middle={out.parent / 'middle.npy'}")
    done = snrecon(*words, "--out", out / "d.h5")
    assert done.code == 0, done.err
    assert done.err == ""
    for text in ("jacobian", "6 of 3 seeds, seed 2", "thermal in middle", "no part of the sum",
                 "finite differences give 1.0", f"wrote {out / 'd.h5'}"):
        assert text in done.out
    found = Decomposition.load(out / "d.h5")
    assert (found.rounds, found.seeds, found.seed, found.method) == (6, 3, 2, "jumpy")
    # Factors of SD 0.1, independent of the data: the posterior part is 0.01 |mean|^2.
    where = found.mean.abs() > 0.3 * found.mean.abs().max()
    ratio = (found.posterior.variance_complex / found.mean.abs().square())[where].double()
    assert abs(float(ratio.mean()) - 0.01) < 5 * float(ratio.std()) / ratio.numel() ** 0.5 + 3e-4
    parts = found.thermal.variance_complex + found.posterior.variance_complex
    torch.testing.assert_close(found.total.variance_complex, parts)
    with h5py.File(out / "d.h5") as file:
        assert file.attrs["kind"] == "decomposition"
        assert file["thermal"].attrs["units"].endswith(")^2")
        assert set(json.loads(file.attrs["regions"])["total"]) == {"all", "middle"}
    again = snrecon(*words, "--out", out / "d.npz")
    assert again.code == 0
    same = Decomposition.load(out / "d.npz")
    for part in PARTS:
        one, two = getattr(found, part), getattr(same, part)
        torch.testing.assert_close(one.variance_error, two.variance_error)
        assert one.regions == two.regions
    assert found.geometry == same.geometry
    assert sorted(p.name for p in out.iterdir()) == ["d.h5", "d.npz"]


def test_other_formats_and_the_state(snrecon: Run, scan_file: Path, out: Path) -> None:
    words = ("decompose", scan_file, "--method", "jumpy", "--seeds", "2", "--estimator",
             "replicas", "--state", out / "s.state")
    first = snrecon(*words, "--rounds", "2", "--out", out / "d.cfl")
    assert first.code == 0, first.err
    assert (out / "d_thermal_complex_error.cfl").is_file()
    more = snrecon(*words, "--rounds", "5", "--out", out / "d.h5")
    assert more.code == 0, more.err
    assert Decomposition.load(out / "d.h5").rounds == 5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--method", "sense"), "its variance over repeated scans is its noise"),
        (("--method", "jumpy", "--rounds", "1"), "at least 2"),
        (("--method", "jumpy", "--seeds", "1"), "at least 2"),
        (("--method", "jumpy", "--region", "a"), "NAME=FILE.npy"),
        (("--method", "jumpy", "--out", "p.txt"), "known format"),
    ],
)
def test_errors(
    snrecon: Run, scan_file: Path, out: Path, words: tuple[str, ...], sentence: str
) -> None:
    given = words if "--out" in words else (*words, "--out", out / "d.h5")
    done = snrecon("decompose", scan_file, *given)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert sentence in done.err
    assert list(out.iterdir()) == []


def test_a_damaged_result_is_a_sentence(snrecon: Run, scan_file: Path, out: Path) -> None:
    from snrecon.errors import InputError

    done = snrecon("decompose", scan_file, "--method", "jumpy", "--rounds", "2", "--seeds", "2",
                   "--out", out / "d.h5")
    assert done.code == 0
    with h5py.File(out / "d.h5", "a") as file:
        file.attrs["regions"] = "{}"
    with pytest.raises(InputError, match="damaged"):
        Decomposition.load(out / "d.h5")
    noise = snrecon("noise", scan_file, "--method", "sense", "--out", out / "n.h5")
    assert noise.code == 0
    with pytest.raises(InputError, match="no result of a decomposition"):
        Decomposition.load(out / "n.h5")
