"""``snrecon sure`` and ``--lambda sure``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Run = Callable[..., object]


def test_prints_and_writes(snrecon: Run, scan_file: Path, out: Path) -> None:
    region = np.zeros((32, 32), dtype=bool)
    region[10:20, 12:22] = True
    np.save(out / "lesion.npy", region)
    words = ("sure", scan_file, "--method", "sense", "--lambda", "0.05", "--probes", "4")
    done = snrecon(*words, "--region", f"lesion={out / 'lesion.npy'}", "--out", out / "risk.json")
    assert done.code == 0, done.err
    for word in ("MSE per voxel", "NMSE", "lesion", "cannot be judged", "seed 0"):
        assert word in done.out
    kept = json.loads((out / "risk.json").read_text())
    assert kept["probes"] == 4
    assert kept["regions"]["lesion"]["elements"] == 100
    other = snrecon(*words, "--seed", "3", "--risk", "prediction")
    assert other.code == 0, other.err
    assert "per sample" in other.out
    finer = snrecon(*words, "--tolerance", "0.02", "--cutoff", "0.1")
    assert finer.code == 0, finer.err


def test_lambda_sure(snrecon: Run, scan_file: Path, out: Path) -> None:
    done = snrecon("noise", scan_file, "--method", "sense", "--lambda", "sure",
                   "--out", out / "noise.h5")
    assert done.code == 0, done.err
    assert "least projected risk (SURE)" in done.out
    assert "lambda by SURE" in done.out
    refused = snrecon("recon", scan_file, "--method", "zero_filled", "--lambda", "sure",
                      "--out", out / "no.h5")
    assert refused.code == 2
    assert "no lambda" in refused.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--probes", "1"), "2 probes"),
        (("--cutoff", "2"), "cutoff"),
        (("--region", "lesion"), "NAME=FILE.npy"),
        (("--out", "risk.txt"), ".json"),
        (("--lambda", "best"), "--lambda"),
        (("--risk", "true"), "--risk"),
    ],
)
def test_bad_input(snrecon: Run, scan_file: Path, words: tuple[str, ...], said: str) -> None:
    done = snrecon("sure", scan_file, "--method", "sense", *words)
    assert done.code == 2
    assert said in done.err
    assert done.out == ""


def test_regions_must_fit(snrecon: Run, scan_file: Path, out: Path) -> None:
    np.save(out / "small.npy", np.ones((3, 3), dtype=bool))
    np.save(out / "text.npy", np.ones((32, 32)))
    for name, said in (("small", "boolean array of shape"), ("text", "must hold booleans"),
                       ("none", "none.npy")):
        done = snrecon("sure", scan_file, "--method", "sense",
                       "--region", f"a={out / (name + '.npy')}")
        assert done.code == 2
        assert said in done.err
