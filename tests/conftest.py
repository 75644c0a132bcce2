"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """Workers of a parallel run share the cores."""
    if os.environ.get("PYTEST_XDIST_WORKER"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real scans; skips when it is absent, fails where it must be present."""
    root = Path(__file__).parents[1]
    folder = Path(os.environ.get("SNRECON_DATA", "../shared/data"))
    folder = folder if folder.is_absolute() else root / folder
    if (folder / "pulseq_brain16" / "kspace.npz").exists():
        return folder.resolve()
    if os.environ.get("SNRECON_REQUIRE_DATA"):
        pytest.fail(f"SNRECON_DATA must hold the real scans here, but {folder} does not")
    pytest.skip(f"the real scans are not at {folder}; set SNRECON_DATA to their folder")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20)
