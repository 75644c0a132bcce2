"""Raw scans to training data: what is stored, in which units, and that work is not done twice."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import real_files
from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.io import load
from snrecon.physics.fourier import ifft
from snrecon.report.demo import save_scan
from snrecon.training import prepare as module
from snrecon.training.prepare import Settings, prepare, read_index
from snrecon.training.volume import along_slices, prepare_scan, prepare_slice, signal_share


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A folder with two brains."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for seed in range(2):
        save_scan(real_files.full_scan(seed=seed), folder / f"s{seed}.npz")
    return folder


def test_volumes_are_whitened_scans(raw: Path, tmp_path: Path) -> None:
    report = prepare([raw], tmp_path / "data", validation=0.5)
    assert (report.volumes, report.slices, report.skipped) == (2, 2, 0)
    assert (report.training, report.validation) == (1, 1)
    scan = load(tmp_path / "data" / "s0.npz")
    given = load(raw / "s0.npz")
    assert (scan.layout, scan.slices, scan.coils) == ("stack", 1, 3)
    assert torch.equal(scan.noise.covariance, torch.eye(3, dtype=torch.complex64))
    torch.testing.assert_close(scan.kspace[0], given.noise.whiten(given.kspace))
    power = scan.maps[0].abs().square().sum(0)
    assert bool(((power - 1).abs() < 1e-4)[power > 0].all())
    # The maps belong to these data: away from noise they explain the coil images.
    images = ifft(scan.kspace[0], (-2, -1))
    combined = (scan.maps[0].conj() * images).sum(0)
    rest = (images - scan.maps[0] * combined)[:, power > 0]
    assert float(rest.abs().square().mean()) < 3  # noise has about 2/3
    index = read_index(tmp_path / "data")
    entry = next(e for e in index if e["file"] == "s0.npz")
    assert entry["sha256"] == hashlib.sha256((tmp_path / "data/s0.npz").read_bytes()).hexdigest()
    assert entry["source_sha256"] == hashlib.sha256((raw / "s0.npz").read_bytes()).hexdigest()
    assert entry["source"] == str(raw / "s0.npz")
    assert (entry["reference"], entry["full"], entry["shape"]) == ("matched", True, [1, 3, 40, 32])
    assert {p.name for p in (tmp_path / "data").iterdir()} == {"s0.npz", "s1.npz", "index.json"}


def test_noise_can_be_kept_and_coils_compressed(raw: Path, tmp_path: Path) -> None:
    given = load(raw / "s0.npz")
    prepare([raw / "s0.npz"], tmp_path / "kept", Settings(keep_noise=True), validation=0)
    kept = load(tmp_path / "kept" / "s0.npz")
    torch.testing.assert_close(kept.kspace[0], given.kspace)
    torch.testing.assert_close(kept.noise.covariance, given.noise.covariance)
    prepare([raw / "s0.npz"], tmp_path / "few", Settings(coils=2), validation=0)
    few = load(tmp_path / "few" / "s0.npz")
    assert few.coils == 2
    white = given.noise.whiten(given.kspace)
    assert float(few.kspace.norm()) > 0.95 * float(white.norm())
    same = few.slice(0).noise.whiten(few.kspace[0])  # still white
    torch.testing.assert_close(same, few.kspace[0])
    with pytest.raises(InputError, match="after whitening"):
        prepare([raw], tmp_path / "x", Settings(coils=2, keep_noise=True))


def test_empty_slices_are_left_out(tmp_path: Path) -> None:
    scan = real_files.full_scan()
    noise = scan.require_noise()
    white = torch.randn(scan.kspace.shape, dtype=torch.complex64,
                        generator=torch.Generator().manual_seed(1))
    empty = noise.unwhiten(white)
    assert signal_share(white, scan.sampled) < 0.005
    stack = replace(scan, kspace=torch.stack([empty, scan.kspace, empty]), layout="stack",
                    geometry=None)
    made = prepare_scan(stack)
    assert (made.kept, made.skipped, made.full) == ((1,), 2, True)
    with pytest.raises(InputError, match="no slice shows signal"):
        prepare_scan(replace(scan, kspace=empty))
    with pytest.raises(InputError, match="--noise-covariance"):
        prepare_scan(replace(scan, noise=None))


def test_undersampled_scans_and_given_maps(tmp_path: Path) -> None:
    scan = real_files.full_scan()
    mask = torch.zeros(scan.grid, dtype=torch.bool)
    mask[::2], mask[14:26] = True, True
    made = prepare_scan(scan.undersample(mask))
    assert not made.full
    assert torch.equal(made.mask[0], mask)
    assert "ESPIRiT" in made.maps_source
    maps = 5 * torch.ones_like(scan.kspace)
    given = prepare_scan(replace(scan, maps=maps))
    assert given.maps_source == "given"
    torch.testing.assert_close(given.maps.abs().square().sum(1), torch.ones(1, *scan.grid))


def test_grids_are_taken_apart_along_kz() -> None:
    one = real_files.full_scan()
    volume = torch.stack([one.kspace, 2 * one.kspace, one.kspace], dim=1)
    grid = Scan(volume, noise=one.noise)
    stack = along_slices(grid)
    assert (stack.layout, stack.slices, stack.grid) == ("stack", 3, one.grid)
    torch.testing.assert_close(stack.kspace, ifft(volume, (1,)).movedim(1, 0))
    mask = torch.ones(grid.grid, dtype=torch.bool)
    mask[0] = False
    with pytest.raises(InputError, match="kz is undersampled"):
        along_slices(grid.undersample(mask))


def test_finished_volumes_are_not_done_again(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    whole = module.prepare_scan
    made: list[str] = []

    def counted(scan: Scan, *args: object) -> object:
        if len(made) == 1 and scan.source.endswith("s1.npz") and "stop" not in made:
            made.append("stop")
            raise KeyboardInterrupt
        made.append(scan.source)
        return whole(scan, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "prepare_scan", counted)
    with pytest.raises(KeyboardInterrupt):
        prepare([raw], data)
    assert {p.name for p in data.iterdir()} == {"s0.npz", "index.json"}
    first = (data / "s0.npz").read_bytes()
    report = prepare([raw], data)
    assert (report.volumes, report.done_before) == (2, 1)
    assert (data / "s0.npz").read_bytes() == first
    assert len(made) == 3
    assert prepare([raw], data).done_before == 2
    assert len(made) == 3
    save_scan(real_files.full_scan(seed=7), raw / "s1.npz")  # another source
    assert prepare([raw], data).done_before == 1
    assert prepare([raw], data, Settings(min_signal=0.03)).done_before == 0
    save_scan(real_files.full_scan(seed=2), tmp_path / "more.npz")
    assert prepare([tmp_path / "more.npz"], data).volumes == 3


def test_division_is_by_subject_and_seeded() -> None:
    def divided(order: list[int], share: float, seed: int) -> dict[str, str]:
        table = {f"{i}.npz": {"file": f"{i}.npz", "subject": f"subject {i // 2}"} for i in order}
        return {name: e["split"] for name, e in module._divided(table, share, seed).items()}

    first = divided(list(range(20)), 0.2, 0)
    assert first == divided(list(range(20))[::-1], 0.2, 0)
    assert sum(split == "validation" for split in first.values()) == 4
    assert all(first[f"{2 * i}.npz"] == first[f"{2 * i + 1}.npz"] for i in range(10))
    assert any(divided(list(range(20)), 0.2, seed) != first for seed in range(1, 4))
    assert set(divided([0, 1], 0.5, 0).values()) == {"train"}  # a single subject
    assert set(divided(list(range(20)), 0, 0).values()) == {"train"}


@pytest.mark.parametrize("seed", range(8))
def test_subjects_stay_on_their_side_when_others_come(seed: int) -> None:
    def entry(i: int) -> dict[str, object]:
        return {"file": f"{i}.npz", "subject": f"subject {i}"}

    few = module._divided({f"{i}.npz": entry(i) for i in range(20)}, 0.1, seed)
    settled = {name: {**e, "settled": True} for name, e in few.items()}
    many = module._divided({**settled, **{f"{i}.npz": entry(i) for i in range(20, 60)}}, 0.1, seed)
    assert {name: many[name]["split"] for name in few} == {n: e["split"] for n, e in few.items()}
    assert sum(e["split"] == "validation" for e in many.values()) == 6


def test_another_share_or_seed_divides_anew(raw: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for share, held in ((0.5, 1), (0.0, 0), (0.5, 1)):
        assert prepare([raw], data, validation=share).validation == held
    sides = set()
    for seed in (0, 7):
        prepare([raw], data, validation=0.5, seed=seed)
        sides |= {e["file"] for e in read_index(data) if e["split"] == "validation"}
    assert sides == {"s0.npz", "s1.npz"}


def test_a_changed_covariance_file_makes_the_volume_again(tmp_path: Path) -> None:
    save_scan(real_files.full_scan(seed=3), tmp_path / "s.npz")
    coils = np.load(tmp_path / "s.npz")["kspace"].shape[-3]
    settings = Settings(noise_covariance=str(tmp_path / "psi.npy"), min_signal=0)
    found = []
    for factor in (1, 4):
        np.save(tmp_path / "psi.npy", factor * np.eye(coils, dtype=np.complex64))
        assert prepare([tmp_path / "s.npz"], tmp_path / "data", settings).done_before == 0
        with np.load(tmp_path / "data" / "s.npz") as file:
            found.append(np.linalg.norm(file["kspace"]))
    assert found[1] / found[0] == pytest.approx(0.5, rel=1e-4)
    assert prepare([tmp_path / "s.npz"], tmp_path / "data", settings).done_before == 1


def test_subjects_of_fastmri_files(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    real_files.write_brain(tmp_path / "raw" / "a.h5", patient="P1", slices=1)
    prepare([tmp_path / "raw"], tmp_path / "data",
            Settings(noise_covariance="identity", min_signal=0.0))
    (entry,) = read_index(tmp_path / "data")
    assert entry["subject"] == "P1"
    assert entry["noise"] == "identity"


def test_equal_names_and_bad_input(raw: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    save_scan(real_files.full_scan(seed=5), other / "s0.npz")
    prepare([raw / "s0.npz", other / "s0.npz"], tmp_path / "data")
    names = {e["file"] for e in read_index(tmp_path / "data")}
    assert names == {"raw_s0.npz", "other_s0.npz"}
    assert {e["split"] for e in read_index(tmp_path / "data")} == {"train", "validation"}
    prepare([raw / "s0.npz"], tmp_path / "later")
    before = (tmp_path / "later" / "s0.npz").read_bytes()
    prepare([other / "s0.npz"], tmp_path / "later")
    assert (tmp_path / "later" / "s0.npz").read_bytes() == before
    assert prepare([raw / "s0.npz", other / "s0.npz"], tmp_path / "later").done_before == 2
    assert {e["file"] for e in read_index(tmp_path / "later")} == {"s0.npz", "other_s0.npz"}
    again = tmp_path / "again" / "other"
    again.mkdir(parents=True)
    save_scan(real_files.full_scan(seed=6), again / "s0.npz")
    with pytest.raises(InputError, match="would get the same name"):
        prepare([again / "s0.npz"], tmp_path / "later")
    shutil.copy(raw / "s0.npz", again / "moved.npz")
    with pytest.raises(InputError, match="the same scan as"):
        prepare([again / "moved.npz"], tmp_path / "later")
    assert len(read_index(tmp_path / "later")) == 2
    (tmp_path / "void").mkdir()
    with pytest.raises(InputError, match="holds no scans"):
        prepare([tmp_path / "void"], tmp_path / "data")
    with pytest.raises(InputError, match="no such file"):
        prepare([tmp_path / "nothing.h5"], tmp_path / "data")
    with pytest.raises(InputError, match="at least one"):
        prepare([], tmp_path / "data")
    with pytest.raises(InputError, match="validation"):
        prepare([raw], tmp_path / "data", validation=1)
    (tmp_path / "void" / "index.json").write_text(json.dumps({"format": "x", "volumes": []}))
    with pytest.raises(InputError, match="another version"):
        prepare([raw], tmp_path / "void")
    np.savez(tmp_path / "bad.npz", kspace=np.ones((2, 8), "c8"))
    with pytest.raises(InputError, match=r"bad\.npz"):
        prepare([tmp_path / "bad.npz"], tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()


def test_files_that_are_no_volumes_are_never_replaced(raw: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in raw.iterdir()}
    (tmp_path / "link").symlink_to(raw)
    for folder in (raw, tmp_path / "link"):
        with pytest.raises(InputError, match=r"s0\.npz is one of the scans to prepare"):
            prepare([raw], folder)
    data = tmp_path / "data"
    data.mkdir()
    (data / "s1.npz").write_bytes(b"of somebody else")
    with pytest.raises(InputError, match=r"s1\.npz is there already"):
        prepare([raw], data)
    assert [path.name for path in data.iterdir()] == ["s1.npz"]
    assert (data / "s1.npz").read_bytes() == b"of somebody else"
    prepare([raw / "s0.npz"], data)
    with pytest.raises(InputError, match=r"s1\.npz is there already"):
        prepare([raw], data)
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == before


def test_a_slice_without_signal_gives_nothing() -> None:
    scan = real_files.full_scan()
    assert prepare_slice(scan) is not None
    assert prepare_slice(scan, min_signal=1.0) is None
