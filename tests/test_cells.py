"""Finished cells of the benchmarks: kept under build, gathered in the repository, found again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import cells


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cells, "BUILD", tmp_path / "build")
    return tmp_path / "build" / "example"


def test_cells_are_found_where_they_were_written_and_once_gathered(folder: Path) -> None:
    results = folder.parent.parent / "results"
    assert cells.read(folder, "a", results) is None
    cells.write(folder, "a", {"x": 1 / 3, "y": [1, None, "text"]})
    cells.write(folder, "b", {"x": 2.0})
    assert cells.read(folder, "a", results)["x"] == 1 / 3
    assert cells.gather(folder, results) == 2
    (folder / "a.json").unlink()
    assert cells.read(folder, "a", results) == {"x": 0.3333333, "y": [1, None, "text"]}
    cells.write(folder, "b", {"x": 3.0})  # what was run last counts
    assert cells.gather(folder, results) == 2
    (folder / "b.json").unlink()
    assert cells.read(folder, "b", results) == {"x": 3.0}


def test_starting_over_forgets_the_gathered_cells_too(folder: Path) -> None:
    results = folder.parent.parent / "results"
    cells.write(folder, "a", 1)
    cells.gather(folder, results)
    cells.start_over(folder)
    assert cells.read(folder, "a", results) is None
    cells.write(folder, "b", 2)
    assert cells.gather(folder, results) == 1


def test_cells_of_another_folder_or_of_none_are_not_mixed_up(folder: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    cells.write(folder, "a", 1)
    cells.gather(folder, results)
    assert cells.read(tmp_path / "example", "a", results) is None
    assert cells.read(None, "a", results) is None
    cells.write(None, "a", 1)


def test_a_cell_is_claimed_by_one_process_that_runs(tmp_path: Path) -> None:
    assert cells.claim(tmp_path, "one")
    assert cells.claim(tmp_path, "one")  # its own
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (tmp_path / "two.claim").write_text(str(other.pid))
    assert not cells.claim(tmp_path, "two")
    other.communicate(b"\n")
    assert cells.claim(tmp_path, "two")  # it was interrupted
