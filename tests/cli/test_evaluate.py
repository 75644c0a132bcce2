"""``snrecon evaluate``: what is printed, written, and refused."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import real_files
from snrecon.report import evaluate
from snrecon.report.demo import save_scan

Run = Callable[..., object]


@pytest.fixture
def brain(tmp_path: Path) -> Path:
    folder = tmp_path / "brains"
    folder.mkdir()
    return save_scan(real_files.full_scan(), folder / "brain.npz")


MASK = ("--mask", "equispaced_fraction", "--acceleration", "2", "--calibration", "12")


def test_a_method_and_its_finished_images(snrecon: Run, brain: Path, out: Path) -> None:
    done = snrecon("evaluate", brain.parent, "--method", "zero_filled:rss", *MASK,
                   "--out", out / "s.csv")
    assert done.code == 0, done.err
    for word in ("brain.npz", "root sum of squares", "equispaced_fraction", "mean of 1", "NMSE",
                 f"wrote {out / 's.csv'}"):
        assert word in done.out
    assert done.err == ""
    with (out / "s.csv").open() as stream:
        first = next(csv.DictReader(stream))
    assert first["method"] == "zero_filled:rss"
    for name, extra in (("image", MASK), ("full", ())):
        snrecon("recon", brain, "--method", "zero_filled:rss", *extra, "--out", out / f"{name}.h5")
    compared = snrecon("evaluate", out / "image.h5", "--against", out / "full.h5",
                       "--out", out / "c.csv")
    assert compared.code == 0, compared.err
    with (out / "c.csv").open() as stream:
        again = next(csv.DictReader(stream))
    assert float(again["nmse"]) == pytest.approx(float(first["nmse"]), rel=1e-4)
    assert float(again["ssim"]) == pytest.approx(float(first["ssim"]), abs=1e-5)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "--against"),
        (("--method", "sense", "--against", "{scan}"), "either"),
        (("--against", "/no/such.h5"), "/no/such.h5"),
        (("--against", "{scan}", "--mask", "random"), "--mask belongs"),
        (("--against", "{scan}", "--lambda", "1"), "--lambda belongs"),
        (("--against", "{scan}"), "image"),
        (("--method", "sense", "--mask", "random"), "--acceleration"),
        (("--method", "sense", "--reference", "esc"), "--reference"),
        (("--method", "sense", "--out", "{out}/s.txt"), ".csv"),
        (("--method", "sense", "--out", "{out}/no/s.csv"), "does not exist"),
        (("--method", "zero_filled:rss", "--reference", "matched"), "no coil maps"),
    ],
)
def test_bad_usage(
    words: tuple[str, ...], expected: str, snrecon: Run, brain: Path, out: Path
) -> None:
    filled = [w.replace("{scan}", str(brain)).replace("{out}", str(out)) for w in words]
    extra = () if "--out" in filled else ("--out", out / "s.csv")
    done = snrecon("evaluate", brain, *filled, *extra)
    assert done.code == 2, done.err
    assert len(done.err.splitlines()) == 1
    assert expected in done.err
    assert list(out.iterdir()) == []


def test_interruption_says_where_the_rows_are(
    snrecon: Run, brain: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate.reconstruct

    def interrupted(*args: object, **options: object) -> Iterator[evaluate.Row]:
        yield from whole(*args, **options)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "reconstruct", interrupted)
    done = snrecon("evaluate", brain, "--method", "zero_filled:rss", *MASK, "--out", out / "s.csv")
    assert done.code == 130
    assert str(out / "s.csv") in done.err
    assert len((out / "s.csv").read_text().splitlines()) == 2
