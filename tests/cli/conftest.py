"""Small scans on disk and a way to run the command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from snrecon.cli.main import main
from snrecon.data import Scan
from snrecon.physics.phantom import simulate_scan
from snrecon.report.demo import save_scan


@dataclass(frozen=True)
class Outcome:
    """Exit code and what was printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def snrecon(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """``snrecon("info", path)`` runs a command."""

    def run(*words: object) -> Outcome:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return run


@pytest.fixture(scope="session")
def scan() -> Scan:
    """32 x 32, 4 coils, regular R = 2 with maps."""
    return simulate_scan(
        (32, 32), coils=4, acceleration=2, calibration=8, mask="regular", with_maps=True
    )


@pytest.fixture
def scan_file(tmp_path: Path, scan: Scan) -> Path:
    """The scan in a folder of its own."""
    folder = tmp_path / "scans"
    folder.mkdir()
    return save_scan(scan, folder / "scan.npz")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder for results."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder
