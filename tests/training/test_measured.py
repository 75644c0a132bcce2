"""Batches of real scans: what they hold, that they depend on seed and index only, and strips."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import real_files
from snrecon.errors import InputError
from snrecon.io import load
from snrecon.io.mapped import mapped_array
from snrecon.physics.coverage import fully_sampled
from snrecon.physics.fourier import ifft
from snrecon.physics.operators import Encoding
from snrecon.report.demo import save_scan
from snrecon.training import slices, train
from snrecon.training.config import (
    Config,
    ConsistencyConfig,
    DataConfig,
    NetworkConfig,
    OutputConfig,
    SimulationConfig,
    TrainerConfig,
)
from snrecon.training.drawn_mask import draw_mask
from snrecon.training.measured import Measured, measured
from snrecon.training.prepare import Settings, prepare
from snrecon.training.prior import Images
from snrecon.training.slices import PreparedVolume, RawVolume, find_scans, open_volumes
from snrecon.training.stream import find_data, training_source

SETTINGS = SimulationConfig(
    kinds=["random", "gaussian2d"], accelerations=[2.0, 4.0], calibration=[0.1, 0.2])
LINES = SimulationConfig(kinds=["random"], accelerations=[2.0], calibration=[0.2, 0.2])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three prepared brains: two of one shape, one of another, and one undersampled."""
    raw = tmp_path_factory.mktemp("raw")
    for seed in range(2):
        save_scan(real_files.full_scan(seed=seed), raw / f"s{seed}.npz")
    save_scan(real_files.full_scan((32, 32), coils=2, seed=3), raw / "small.npz")
    scan = real_files.full_scan(seed=4)
    mask = torch.zeros(scan.grid, dtype=torch.bool)
    mask[::2], mask[12:28] = True, True
    save_scan(scan.undersample(mask), raw / "part.npz")
    folder = tmp_path_factory.mktemp("data")
    prepare([raw], folder, validation=0)
    return folder


def test_a_batch_is_consistent(data: Path) -> None:
    source = measured(data, SETTINGS, seed=1)
    assert len(source) == 4
    names = [volume.name for volume in source.volumes]
    for index in range(8):
        (volume, part), = source.places(index, 1)
        batch = source.draw(index, 1)
        kspace, maps, mask = source.volumes[volume].read(part)
        torch.testing.assert_close(batch.kspace[0], kspace * batch.mask[0])
        torch.testing.assert_close(batch.maps[0], maps)
        encoding = Encoding(maps, batch.mask[0])
        torch.testing.assert_close(batch.b[0], encoding.H(batch.kspace[0]), rtol=1e-4, atol=1e-3)
        if names[volume] == "part.npz":
            assert torch.equal(batch.mask[0], mask)
            assert not bool(batch.labelled)
            assert not bool(batch.target.any())
        else:
            assert not fully_sampled(batch.mask[0])
            assert bool(batch.labelled)
            whole = (maps.conj() * ifft(kspace, (-2, -1))).sum(0)
            torch.testing.assert_close(batch.target[0], whole)


def test_batches_depend_on_seed_and_index_only(data: Path) -> None:
    one = measured(data, SETTINGS, seed=3)
    drawn = [one.draw(index, 1) for index in range(9)]  # more than two passes
    again = measured(data, SETTINGS, seed=3)  # a run resumed at the last index
    for index in (8, 2):
        for a, b in zip(drawn[index].tensors(), again.draw(index, 1).tensors(), strict=True):
            assert torch.equal(a, b)
    assert [one.places(i, 1) for i in range(4)] != [one.places(i, 1) for i in range(4, 8)] or (
        not torch.equal(drawn[0].mask, drawn[4].mask))
    other = measured(data, SETTINGS, seed=4)
    assert any(other.draw(i, 1).mask.shape != drawn[i].mask.shape
               or not torch.equal(other.draw(i, 1).mask, drawn[i].mask) for i in range(4))


@pytest.mark.parametrize("count", [1, 2])
def test_a_pass_sees_every_slice(data: Path, count: int) -> None:
    source = measured(data, SETTINGS)
    size = {1: 4, 2: 3}[count]  # of three and one slices of one shape, in pairs
    for start in (0, size):
        seen = [place for i in range(size) for place in source.places(start + i, count)]
        assert set(seen) == {(v, 0) for v in range(4)}
    for index in range(size):
        shapes = {source.volumes[v].shape for v, _ in source.places(index, count)}
        assert len(shapes) == 1
        assert source.draw(index, count).kspace.shape[0] == count


def test_some_targets_can_be_withheld(data: Path) -> None:
    source = measured(data, LINES, labelled=0.5)
    assert len(source.known) == 2
    flags = [bool(source.draw(i, 1).labelled) for i in range(4)]
    assert 1 <= sum(flags) <= 2  # the undersampled one never has a target
    assert source.known == measured(data, LINES, labelled=0.5).known
    assert not any(bool(measured(data, LINES, labelled=0).draw(i, 1).labelled) for i in range(4))


@pytest.fixture(scope="module")
def under(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undersampled one of the brains."""
    folder = tmp_path_factory.mktemp("under")
    shutil.copy(data / "part.npz", folder)
    index = json.loads((data / "index.json").read_text())
    index["volumes"] = [entry for entry in index["volumes"] if entry["file"] == "part.npz"]
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def of(scheme: str, *folders: Path, labelled: float = 0.25) -> Config:
    network = {"score_matching": "ncsnpp", "noise_predictor": "noise_predictor"}
    return Config(DataConfig([str(folder) for folder in folders], []), scheme, simulation=LINES,
                  network=NetworkConfig(network.get(scheme, "varnet")),
                  consistency=ConsistencyConfig(labelled=labelled))


def test_slices_without_the_target_that_is_learnt_are_left_out(data: Path, under: Path) -> None:
    whole, taught = (Measured(open_volumes(data), LINES, targets=t) for t in ("none", "all"))
    assert (len(whole), len(taught)) == (4, 3)
    source = training_source(of("supervised", data, under))
    batches = [source.draw(i, 2) for i in range(6)]
    assert all(bool(batch.labelled.all()) for batch in batches)
    assert all(bool((batch.target.abs().amax((-2, -1)) > 1).all()) for batch in batches)
    config = of("score_matching", data)
    shown = Images(config, find_data(config, "train"), 0, 4)
    generator = torch.Generator().manual_seed(0)
    assert all(float(shown.draw(1, generator).abs().max()) > 0.1 for _ in range(8))
    flags = {bool(flag) for i in range(3) for flag in
             training_source(of("vortex", data, labelled=0.9)).draw(i, 2).labelled}
    assert flags == {True, False}


def test_where_all_slices_have_targets_the_draws_are_the_same(data: Path) -> None:
    full = [volume for volume in open_volumes(data) if volume.full(0)]
    plain, taught = (Measured(full, SETTINGS, 3, targets=t) for t in ("none", "all"))
    for index in range(4):
        for a, b in zip(plain.draw(index, 1).tensors(), taught.draw(index, 1).tensors()):
            assert torch.equal(a, b)


def test_schemes_that_need_targets_refuse_data_without(data: Path, under: Path) -> None:
    for scheme in ("supervised", "noise2recon", "vortex"):
        with pytest.raises(InputError, match="all volumes are undersampled") as caught:
            training_source(of(scheme, under))
        assert str(under) in str(caught.value)
    config = of("score_matching", under)
    with pytest.raises(InputError, match="all volumes are undersampled"):
        Images(config, find_data(config, "train"), 0, 4)
    for scheme in ("ssdu", "noise_predictor"):
        assert not training_source(of(scheme, under)).draw(0, 1).target.any()
    volumes = open_volumes(data)
    seed = next(seed for seed in range(100) for one in Measured(volumes, LINES, seed, 0.1).known
                if volumes[one].name == "part.npz")
    with pytest.raises(InputError, match=r"consistency\.labelled = 0\.1"):
        Measured(volumes, LINES, seed, 0.1, targets="some")


def test_strips_are_complete_problems(data: Path) -> None:
    whole, strip = (measured(data, LINES, seed=2, columns=c) for c in (0, 12))
    for index in range(4):
        a, b = whole.draw(index, 1), strip.draw(index, 1)
        assert b.kspace.shape[-1] == b.mask.shape[-1] == b.target.shape[-1] == 12
        assert torch.equal(b.mask[0, :, 0], a.mask[0, :, 0])
        shifts = [s for s in range(a.b.shape[-1] - 11)
                  if torch.allclose(b.b[0], a.b[0, :, s : s + 12], atol=1e-3)]
        assert len(shifts) == 1
        (s,) = shifts
        torch.testing.assert_close(b.target[0], a.target[0, :, s : s + 12], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(b.maps[0], a.maps[0, ..., s : s + 12])
    planar = Measured([PreparedVolume(data / "s0.npz")], SimulationConfig(kinds=["poisson"]),
                      columns=12)
    with pytest.raises(InputError, match="kx fully sampled"):
        planar.draw(0, 1)


def test_masks_are_those_of_the_configuration(generator: torch.Generator) -> None:
    rates = []
    for _ in range(20):
        mask = draw_mask(LINES, (40, 32), generator, strip=False)
        assert torch.equal(mask, mask[:, :1].expand_as(mask))
        assert bool(mask[17:24].all())  # a fifth of the lines around the centre
        rates.append(mask.numel() / int(mask.sum()))
    assert np.mean(rates) == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"grids": [[128, 128], [16, 64]]}, "accelerations = 6 .* grid of 16x64: .*4 calibration"),
     ({"grids": [[16, 16]], "kinds": ["poisson"]}, "kinds = 'poisson' do not go together .*16x16"),
     ({"kinds": ["regular"], "accelerations": [4.5]}, "kinds = 'regular' .*whole acceleration")])
def test_masks_that_cannot_be_drawn_are_found_before_training(
    images: str, settings: dict[str, list[object]], sentence: str
) -> None:
    config = Config(DataConfig([images], []), simulation=SimulationConfig(**settings))
    with pytest.raises(InputError, match=sentence):
        training_source(config)
    training_source(replace(config, simulation=SimulationConfig(pool=1, grids=[[32, 16]])))


def test_masks_of_measured_scans_are_those_of_their_grids(data: Path) -> None:
    settings = replace(LINES, grids=[[16, 16]])  # which have nothing to do with it
    config = replace(of("supervised", data), simulation=settings)
    training_source(replace(config, simulation=replace(settings, accelerations=[8.0])))
    wrong = replace(settings, accelerations=[9.0])
    for scheme in ("supervised", "score_matching"):
        config = replace(of(scheme, data), simulation=wrong)
        found = find_data(config, "train")
        with pytest.raises(InputError, match=r"accelerations = 9 .*32x32"):
            training_source(config) if scheme == "supervised" else Images(config, found, 0, 4)


def test_workers_get_it_by_pickling(data: Path) -> None:
    source = measured(data, SETTINGS, seed=5)
    source.draw(0, 2)
    copy: Measured = pickle.loads(pickle.dumps(source))
    for a, b in zip(source.draw(1, 2).tensors(), copy.draw(1, 2).tensors(), strict=True):
        assert torch.equal(a, b)


def test_kept_noise_is_whitened_when_read(tmp_path: Path) -> None:
    raw = save_scan(real_files.full_scan(), tmp_path / "raw.npz")
    for name, keep in (("white", False), ("kept", True)):
        prepare([raw], tmp_path / name, Settings(keep_noise=keep), validation=0)
    white, kept = (PreparedVolume(tmp_path / n / "raw.npz").read(0) for n in ("white", "kept"))
    for a, b in zip(white[:2], kept[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_fastmri_files_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.h5"
    real_files.write_brain(path, shape=(64, 64), slices=2, empty=1)
    (volume,) = open_volumes(tmp_path)
    assert isinstance(volume, RawVolume)
    assert (volume.slices, volume.shape, volume.full(0)) == (3, (3, 64, 64), True)
    truth = real_files.full_scan((64, 64)).require_noise()
    # The background gives the noise within a few per cent, so the data are in SNR units.
    monkeypatch.setattr(RawVolume, "noise", truth)
    kspace, maps, mask = volume.read(1)
    given = load(path, slice=1, noise_covariance="identity")
    torch.testing.assert_close(kspace, truth.whiten(given.kspace))
    assert bool(mask.all())
    assert maps.shape == kspace.shape
    assert all(torch.equal(a, b) for a, b in zip(volume.read(0), (kspace, maps, mask)))
    batch = Measured([volume], LINES).draw(0, 2)
    assert batch.kspace.shape == (2, 3, 64, 64)
    # As many slices as fit are kept, of all files together.
    size = slices._size(volume.read(1))
    monkeypatch.setattr(slices, "CACHE_BYTES", 2 * size)
    monkeypatch.setattr(slices, "_KEPT", OrderedDict())
    other = tmp_path / "g.h5"
    real_files.write_brain(other, shape=(64, 64), slices=2)
    parts = [RawVolume(other).read(0), volume.read(1), volume.read(2)]
    assert len(slices._KEPT) == 2
    assert all(a is b for a, b in zip(volume.read(2), parts[2]))
    assert all(a is b for a, b in zip(RawVolume(path).read(1), parts[1]))


def test_noise_of_a_fastmri_file_is_that_of_its_background(tmp_path: Path) -> None:
    real_files.write_brain(tmp_path / "f.h5", shape=(96, 96), slices=1)
    found = RawVolume(tmp_path / "f.h5").noise.covariance
    truth = real_files.full_scan((96, 96)).require_noise().covariance
    assert float((found - truth).norm() / truth.norm()) < 0.15


def test_undersampled_fastmri_files_are_to_be_prepared(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    real_files.write_brain(path, shape=(64, 64), slices=1)
    with h5py.File(path, "r+") as file:
        lines = np.arange(64) % 4 == 0
        lines[26:38] = True
        file["mask"] = lines
    (volume,) = open_volumes(tmp_path)
    assert not volume.full(0)
    with pytest.raises(InputError, match="snrecon prepare --noise-covariance FILE") as caught:
        Measured([volume], LINES).draw(0, 1)
    assert "acceleration" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_entries_that_name_real_scans(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_scans(str(data)) == data
    assert find_scans(str(tmp_path)) is None  # perhaps DICOM images
    (tmp_path / "brains").mkdir()
    (tmp_path / "brains" / "f.h5").touch()
    assert find_scans(str(tmp_path / "brains")) == tmp_path / "brains"
    monkeypatch.setenv("SNRECON_DATA", str(tmp_path))
    assert find_scans("brains") == tmp_path / "brains"
    assert find_scans("brains/f.h5") == tmp_path / "brains" / "f.h5"
    for entry in ("heads.npz:x", "t1.nii.gz", "absent"):
        assert find_scans(entry) is None


def test_no_file_is_for_training_and_validation(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        real_files.write_brain(tmp_path / name / f"{name}.h5", slices=1, seed=seed)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    config = of("supervised", tmp_path / "a", tmp_path / "b")
    for name in ("a", "link", "a/a.h5"):
        both = replace(config, data=replace(config.data, validation=[str(tmp_path / name)]))
        with pytest.raises(InputError, match=r"a\.h5: this file is under both .*snrecon prepare"):
            find_data(both, "validation")
    apart = replace(of("supervised", tmp_path / "a").data, validation=[str(tmp_path / "b")])
    (found,) = find_data(replace(config, data=apart), "validation").volumes
    assert found.name == "b.h5"
    prepare([tmp_path / "a", tmp_path / "b"], tmp_path / "data",
            Settings(noise_covariance="identity", min_signal=0.0), validation=0.5)
    divided = DataConfig([str(tmp_path / "data")], [str(tmp_path / "data")])
    names = [v.name for split in ("train", "validation")
             for v in find_data(replace(config, data=divided), split).volumes]
    assert sorted(names) == ["a.npz", "b.npz"]


def test_what_cannot_be_used(tmp_path: Path, data: Path) -> None:
    with pytest.raises(InputError, match="none of its volumes is for validation"):
        measured(data, LINES, split="validation")
    with pytest.raises(InputError, match="neither prepared volumes"):
        measured(tmp_path, LINES)
    with pytest.raises(InputError, match="no such file"):
        measured(tmp_path / "nothing.h5", LINES)
    with pytest.raises(InputError, match="no volumes"):
        Measured([], LINES)
    with pytest.raises(InputError, match="labelled"):
        measured(data, LINES, labelled=2)
    np.savez(tmp_path / "odd.npz", kspace=np.ones((2, 4, 4), "c8"), maps=np.ones((2, 4, 4), "c8"))
    with pytest.raises(InputError, match="not a prepared volume"):
        PreparedVolume(tmp_path / "odd.npz")


def test_parts_of_stored_arrays(tmp_path: Path) -> None:
    values = np.arange(24.0).reshape(2, 3, 4)
    np.savez(tmp_path / "a.npz", first=np.ones(3), x=values, y=np.asfortranarray(values))
    found = mapped_array(tmp_path / "a.npz", "x")
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found[1], values[1])
    with pytest.raises(InputError, match="no array 'z'"):
        mapped_array(tmp_path / "a.npz", "z")
    with pytest.raises(InputError, match="plain array"):
        mapped_array(tmp_path / "a.npz", "y")
    np.savez_compressed(tmp_path / "c.npz", x=values)
    with pytest.raises(InputError, match="compressed"):
        mapped_array(tmp_path / "c.npz", "x")
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "t.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"t\.npz"):
        mapped_array(tmp_path / "t.npz", "x")


def test_a_fastmri_slice_of_zeros_is_replaced_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    real_files.write_brain(path, shape=(64, 64), slices=3)
    with h5py.File(path, "r+") as file:
        file["kspace"][0] = 0
    volume = RawVolume(path)
    assert all(torch.equal(a, b) for a, b in zip(volume.read(0), volume.read(1)))


def test_an_autoencoder_wants_scans_of_its_size(data: Path, tmp_path: Path) -> None:
    def config(size: int, **where: list[str]) -> Config:
        return Config(
            DataConfig(**{"images": [str(data)], "validation": [], **where}),
            scheme="autoencoder",
            network=NetworkConfig("autoencoder", {"size": size, "latent": 4, "features": 4}),
            trainer=TrainerConfig(max_steps=1, max_minutes=0.0, batch=1, interval=1,
                                  precision="float32"),
            output=OutputConfig(str(tmp_path / "run"), "net"))

    with pytest.raises(InputError, match=r"npz has images of 40x32, but network\.size is 32"):
        train(config(32))
    small = tmp_path / "small"
    save_scan(real_files.full_scan((32, 32), coils=2, seed=3), tmp_path / "one.npz")
    prepare([tmp_path / "one.npz"], small, validation=0)
    save_scan(real_files.full_scan(), tmp_path / "other.npz")
    prepare([tmp_path / "other.npz"], tmp_path / "other", validation=0.9)
    with pytest.raises(InputError, match="40x32"):
        train(config(32, images=[str(small)], validation=[str(tmp_path / "other")]))
    assert train(config(32, images=[str(small)])).exists()  # whatever simulation.grids are
