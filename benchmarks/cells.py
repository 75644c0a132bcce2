"""Finished cells of the long benchmarks: kept while they run, and in the repository for good.

A cell is written to ``build/benchmarks/NAME/CELL.json`` as soon as it is done.

    python -m benchmarks.cells

gathers the finished cells of every benchmark in ``benchmarks/results/NAME.json``, one a line, from
where later runs take what they do not find under ``build``: the numbers behind the tables.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.real_scans import ROOT
from benchmarks.table import RESULTS

BUILD = ROOT / "build" / "benchmarks"
FRESH = "fresh"
"""A file of this name says that the cells in the repository are not wanted."""
DIGITS = 7


def read(folder: Path | None, name: str, results: Path = RESULTS) -> Any:
    """A finished cell, or None."""
    if folder is None:
        return None
    path = folder / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text())
    kept = results / f"{folder.name}.json"
    if folder.parent != BUILD or (folder / FRESH).exists() or not kept.exists():
        return None
    return json.loads(kept.read_text()).get(name)


def write(folder: Path | None, name: str, cell: Any) -> None:
    """Keep a finished cell."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(cell, indent=1))
        partial.replace(path)


def claim(folder: Path, name: str) -> bool:
    """Whether this process is to measure a cell: no other one that still runs has said so."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.claim"
    for _ in range(2):
        try:
            with path.open("x") as file:
                file.write(str(os.getpid()))
            return True
        except FileExistsError:
            owner = _number(path)
            if owner == os.getpid():
                return True
            if owner is None or _runs(owner):
                return False
            path.unlink(missing_ok=True)  # of a run that was interrupted
    return False


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # being written or removed right now
        return None


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def start_over(folder: Path) -> None:
    """Forget all cells of a benchmark."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.json"):
        path.unlink()
    (folder / FRESH).touch()


def gather(folder: Path, results: Path = RESULTS) -> int:
    """Put the finished cells of one benchmark into the repository; how many are there now."""
    kept = results / f"{folder.name}.json"
    cells: dict[str, Any] = {}
    if kept.exists() and not (folder / FRESH).exists():
        cells = json.loads(kept.read_text())
    cells |= {path.stem: _rounded(json.loads(path.read_text())) for path in folder.glob("*.json")}
    lines = [f"{json.dumps(name)}: {json.dumps(cells[name])}" for name in sorted(cells)]
    results.mkdir(exist_ok=True)
    kept.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return len(cells)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return value


def main() -> None:
    """Gather the cells of the benchmarks that have some."""
    for name in ("scores", "noise_paper", "estimators", "generative"):
        if any((BUILD / name).glob("*.json")):
            print(f"{name}: {gather(BUILD / name)} cells")


if __name__ == "__main__":
    main()
