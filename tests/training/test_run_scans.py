"""Training and validation on measured scans."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import real_files
from small_runs import configuration, rows
from snrecon.errors import InputError
from snrecon.report.demo import save_scan
from snrecon.training.config import (
    Config,
    DataConfig,
)
from snrecon.training.prepare import prepare
from snrecon.training.scores import nmse
from snrecon.training.stream import unlabelled_batch, validation_batches


@pytest.fixture
def measured(tmp_path):
    """Folders of prepared volumes for training and validation: ``full``, ``under``, ``mixed``."""
    for number in range(4):
        scan = real_files.full_scan((32, 32), coils=2, seed=number)
        mask = torch.zeros(scan.grid, dtype=torch.bool)
        mask[::2], mask[10:22] = True, True
        for name in ("full", "under", "mixed"):
            (tmp_path / "raw" / name).mkdir(parents=True, exist_ok=True)
            part = name == "under" or (name == "mixed" and number % 2)
            save_scan(scan.undersample(mask) if part else scan,
                      tmp_path / "raw" / name / f"s{number}.npz")
    for name in ("full", "under", "mixed"):
        prepare([tmp_path / "raw" / name], tmp_path / name, validation=0.5)
    return tmp_path


def of_scans(measured, training, validation, scheme, **trainer) -> Config:
    config = configuration("", measured / "run", **trainer)
    data = DataConfig([str(measured / training)], [str(measured / validation)])
    return replace(config, data=data, scheme=scheme)


def test_validation_is_on_scans_with_a_reference(measured):
    for name in ("full", "mixed"):
        index = json.loads((measured / name / "index.json").read_text())
        held = [v for v in index["volumes"] if v["split"] == "validation"]
        assert {v["full"] for v in held} == ({True} if name == "full" else {True, False})
        batches = validation_batches(of_scans(measured, "under", name, "ssdu"))
        assert set(batches) == {2.0, 4.0, 8.0}
        for batch in batches.values():
            assert bool(batch.labelled.all())
            assert bool((nmse(batch.b, batch.target) < 2).all())
        assert unlabelled_batch(of_scans(measured, "under", name, "ssdu")) is None
    for scheme in ("supervised", "vortex"):
        with pytest.raises(InputError, match=r"data\.validation .*under\): all .*undersampled"):
            validation_batches(of_scans(measured, "full", "under", scheme))


def test_ssdu_without_any_reference_is_scored_by_its_own_loss(measured):
    pytest.importorskip("lightning")
    from snrecon.training import train

    config = of_scans(measured, "under", "under", "ssdu", max_steps=60, interval=3, patience=2,
                      learning_rate=1e-12, weight_decay=0.0)
    train(config)
    log = rows(measured / "run")
    assert set(log[0]) == {"minutes", "step", "loss", "val_loss"}
    losses = [float(row["val_loss"]) for row in log]
    # The weights hardly move, and the same samples of the same scans are predicted every time.
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-4)
    assert 0 < losses[0] < 5
    assert len(log) < 20  # patience has seen them
    assert (measured / "run" / "baselines.csv").read_text().count("\n") == 1
