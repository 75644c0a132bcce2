"""A thousand mutations of a valid file per reader: read or refused, nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import scan_files as files
from fuzzing import Job, assert_survived, mutate
from snrecon.data import Geometry, NoiseMap
from snrecon.io import save, write_cfl
from snrecon.io.cfl import to_bart

COUNT = 1000
LOAD, LOAD_RESULT = "snrecon.io:load", "snrecon.io:load_result"
IDENTITY = {"noise_covariance": "identity"}


def result(shape: tuple[int, int] = (6, 5)) -> NoiseMap:
    image = torch.from_numpy(files.image(shape)).to(torch.complex64)
    one = torch.ones(shape)
    return NoiseMap(
        image,
        sigma=one,
        sigma_complex=2 * one,
        snr=image.abs(),
        estimator="sketch",
        seed=3,
        frozen=("coil maps", "lambda"),
        method="sense",
        geometry=Geometry((1e-3, 1e-3, 1e-3)),
        details={"why": "a test"},
    )


def test_numpy_and_bart_files(tmp_path: Path) -> None:
    mask = files.lines((8, 6))
    kspace = files.kspace(2, (8, 6)) * mask
    np.savez(
        tmp_path / "scan.npz",
        kspace=kspace,
        mask=mask,
        maps=files.coil_maps(2, (8, 6)),
        noise=files.noise((2, 40)),
        noise_dwell_ratio=0.5,
        layout="grid",
    )
    np.save(tmp_path / "scan.npy", kspace)
    write_cfl(tmp_path / "scan.cfl", to_bart(kspace, coils=True))
    save(result(), tmp_path / "result.npz")
    npz, npy, cfl, hdr, made = (
        str(tmp_path / name)
        for name in ("scan.npz", "scan.npy", "scan.cfl", "scan.hdr", "result.npz")
    )
    assert_survived(
        [
            Job(LOAD, npz, count=COUNT),
            Job(LOAD, npy, options=IDENTITY, count=COUNT),
            Job(LOAD, cfl, (hdr, cfl), options=IDENTITY, count=COUNT),
            Job(LOAD_RESULT, made, count=COUNT),
        ]
    )


def test_hdf5_files(tmp_path: Path) -> None:
    scan = files.write_fastmri(
        tmp_path / "scan.h5",
        files.kspace(2, (8, 6))[None] * np.array([1, 0, 1, 1, 0, 1]),
        mask=np.array([1, 0, 1, 1, 0, 1]),
        xml=files.header(8, 6, 2),
        attributes={"max": 1.0, "norm": 2.0, "patient_id": "none", "acquisition": "AXT2"},
    )
    save(result(), tmp_path / "result.h5")
    assert_survived(
        [
            Job(LOAD, str(scan), options=IDENTITY, count=COUNT),
            Job(LOAD_RESULT, str(tmp_path / "result.h5"), count=COUNT),
        ]
    )


def test_mutations_are_repeatable_and_change_the_file() -> None:
    data = bytes(range(256)) * 8
    made = [mutate(data, seed) for seed in range(300)]
    assert made == [mutate(data, seed) for seed in range(300)]
    assert sum(m != data for m in made) > 280
    assert len({len(m) for m in made}) > 50
