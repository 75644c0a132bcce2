"""What a new result leaves of an earlier one of its name, and where it says that it lies."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from results_at_hand import result
from snrecon.data import Geometry
from snrecon.io import save, save_image

nibabel = pytest.importorskip("nibabel")


@pytest.mark.parametrize("ending", ["nii.gz", "cfl"])
def test_maps_of_an_earlier_result_do_not_stay_beside_a_new_image(
    tmp_path: Path, ending: str
) -> None:
    other = tmp_path / "r_sigma.txt"
    other.write_text("somebody else's")
    (tmp_path / "r_other.json").write_text('{"quantity": 3}')
    save(result(), tmp_path / f"r.{ending}")
    assert any("sigma_phase" in path.name for path in tmp_path.iterdir())
    save(replace(result(), sigma_phase=None, g_factor=None), tmp_path / f"r.{ending}")
    left = {path.name for path in tmp_path.iterdir()}
    assert not any("phase" in name or "g_factor" in name for name in left)
    assert any(name.startswith("r_snr") for name in left)
    save_image(result().image, tmp_path / f"r.{ending}")
    left = {path.name for path in tmp_path.iterdir()}
    assert not any(name.startswith(("r_sigma.n", "r_sigma.c", "r_sigma.h", "r_snr"))
                   for name in left)
    assert {"r_sigma.txt", "r_other.json"} <= left


def test_voxel_sizes_alone_are_no_place_in_the_scanner(tmp_path: Path) -> None:
    sizes = Geometry((0.005, 0.001, 0.002))
    save(replace(result(), geometry=sizes), tmp_path / "r.nii.gz")
    image = nibabel.load(tmp_path / "r_sigma.nii.gz")
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (2, 2)
    np.testing.assert_allclose(image.header.get_zooms(), (2, 1))
    assert "voxel sizes only" in json.loads((tmp_path / "r_sigma.json").read_text())["affine"]


def test_volumes_of_the_other_ending_do_not_lose_their_sidecars(tmp_path: Path) -> None:
    save(result(), tmp_path / "r.nii.gz")
    save_image(result().image, tmp_path / "r.nii")
    assert {path.name for path in tmp_path.iterdir()} == {"r_image.nii", "r_image.json"}
