"""The report of the published experiment, from cells made up here."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from benchmarks import cells, noise_paper, noise_report
from benchmarks.noise_paper import Cell, Setting
from benchmarks.table import insert

CELL = Cell(
    weights="w", acceleration=7.9, pearson=0.991, ceiling=0.993, nrmse=0.012, floor=0.011,
    corrected=0.9985, ratio=1.01, rms_ratio=1.02, difference=0.03, residual=0.05, predicted=1.018,
    predicted_error=0.002, seconds=(0.04, 0.03), bytes=12_000_000,
)


def test_named_tables_print_ours_beside_the_published() -> None:
    deep = Setting("pulseq", "modl", 8.0, 1.0, "random", 1000, 3000)
    found = replace(CELL, small=1.0003, small_corrected=0.9999, exact_sketch=(0.999, 0.016, 0.0158),
                    exact_replicas=(0.98, 0.03, 0.009))
    text = noise_report.named_tables({deep: found, replace(deep, network="varnet:own"): CELL})
    assert "| 99.10 / 1.20 | 99.30 / 1.10 | 99.9 / 0.5 | 99.7 / 1.1 | 0.9985 |" in text
    assert "| 1.0003 | 0.9999 | 1.0200 | 1.0180 +- 0.0020 | 5.0 | 3.0 |" in text
    assert "| 0.9990 | 1.60 (1.58) | 0.9800 | 3.00 (0.90) |" in text
    assert "| 40 | 30 | 1.33 | 12 |" in text
    assert "| varnet:own | 7.90 | 99.10 / 1.20 | 99.30 / 1.10 | - | - |" in text
    assert "device" not in text


def test_table_of_seconds_names_devices_once_one_is_not_the_cpu() -> None:
    deep = Setting("pulseq", "modl", 8.0, 1.0, "random", 1000, 3000)
    cells_of_two = {deep: CELL, replace(deep, scan="mripy"): replace(CELL, device="some GPU")}
    text = noise_report.named_tables(cells_of_two)
    assert "| MB a probe | device |" in text
    assert "| 40 | 30 | 1.33 | 12 | cpu |" in text
    assert "| 40 | 30 | 1.33 | 12 | some GPU |" in text


@pytest.mark.parametrize("parts", [1, 5])
def test_every_process_has_all_cells_case_by_case(parts: int) -> None:
    settings = noise_paper.full_grid(["varnet", "modl"], 200)
    firsts = set()
    for part in range(1, parts + 1):
        order = noise_paper.by_case(settings, part, parts)
        firsts.add(order[0])
        assert sorted(s.name for s in order) == sorted(s.name for s in settings)
        cases = [(s.scan, s.kind, s.rate) for s in order]
        changes = sum(a != b for a, b in pairwise(cases))
        assert changes <= len(set(cases))
    assert len(firsts) == parts


def test_summary_takes_means_over_patterns_and_accelerations(tmp_path: Path) -> None:
    settings = noise_paper.full_grid(["varnet", "modl"], 200)
    made = {s: replace(CELL, difference=s.rate / 100 if s.network == "varnet" else 0.5,
                        rms_ratio=1 + s.level / 100, predicted=1 + s.level / 90)
             for s in settings if s.level != 200 or (s.network, s.rate) == ("varnet", 4)
             or (s.scan, s.network) == ("mripy", "modl")}
    rows = noise_report.summary_table(made).splitlines()
    assert rows[2].startswith("| pulseq | varnet | 8.0 % (5 %), 1.010 (1.011) | 8.0 %")
    assert rows[3].startswith("| pulseq | modl | 50.0 % (5 %), 1.010 (1.011) | ")
    assert rows[2].endswith("| 4 of 12 cells |")
    assert rows[3].endswith("| 0 of 12 cells |")
    assert noise_report._whole(made) == ["modl"]  # of mripy
    assert len(noise_report.grid_table(made).splitlines()) == 2 + len(made)
    noise_report.levels_picture(made, tmp_path / "levels.png")
    noise_report.prediction_picture(made, tmp_path / "prediction.png")
    for name in ("levels", "prediction"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_grid_is_whole_and_named_cells_are_the_papers() -> None:
    settings = noise_paper.full_grid(["a", "b"], 200)
    assert len(set(settings)) == 2 * 2 * 3 * 6 * 4
    assert not any(s.many for s in settings)
    deep = noise_paper.named(["a", "b", "c"])
    assert [(s.scan, s.network) for s in deep] == [
        (scan, network) for scan in ("pulseq", "mripy") for network in ("a", "b", "c")]
    assert {(s.probes, s.samples, s.rate, s.level, s.many) for s in deep} == {
        (1000, 3000, 8.0, 1.0, True)}
    assert len({s.name for s in [*settings, *deep]}) == len(settings) + len(deep)


def test_cells_of_other_weights_are_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting("pulseq", "modl", 8.0, 1.0, "random", 200, 200)
    monkeypatch.setattr(noise_paper, "weights_checksum", lambda network: "w")
    assert noise_paper.finished(setting, tmp_path) is None
    cell = replace(CELL, exact_sketch=(0.999, 0.016, 0.0158))
    cells.write(tmp_path, setting.name, asdict(cell))
    assert noise_paper.finished(setting, tmp_path) == cell
    assert noise_paper.measure(setting, tmp_path) == cell
    old = {key: value for key, value in asdict(cell).items() if key != "device"}
    cells.write(tmp_path, setting.name, old)
    assert noise_paper.finished(setting, tmp_path) == cell  # all were of the CPU
    monkeypatch.setattr(noise_paper, "weights_checksum", lambda network: "others")
    assert noise_paper.finished(setting, tmp_path) is None


def test_voxels_are_drawn_from_the_region() -> None:
    region = torch.zeros(20, 30, dtype=torch.bool)
    region[4:9, 3:12] = True
    chosen = noise_paper.drawn_voxels(region, 17)
    assert int(chosen.sum()) == 17
    assert not bool((chosen & ~region).any())
    assert torch.equal(noise_paper.drawn_voxels(region, 1000), region)
    assert not torch.equal(chosen, noise_paper.drawn_voxels(region, 17, seed=7))


def test_inserted_text_replaces_itself(tmp_path: Path) -> None:
    path = tmp_path / "card.md"
    path.write_text("# Card\n")
    insert(path, "scores", "first \\1")
    insert(path, "other", "kept")
    insert(path, "scores", "second")
    text = path.read_text()
    assert text.startswith("# Card\n\n<!-- scores: begin -->\nsecond\n<!-- scores: end -->")
    assert "first" not in text
    assert "kept" in text


@pytest.mark.parametrize(("network", "wanted"), [
    ("e2e_varnet", ("99.9 / 0.7", "99.9 / 0.5")), ("varnet:ssdu", ("99.9 / -", "-")),
    ("varnet", ("-", "-")),
])
def test_published_figures_by_method(network: str, wanted: tuple[str, str]) -> None:
    assert noise_report.published(network) == wanted
