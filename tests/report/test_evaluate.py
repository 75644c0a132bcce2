"""Scoring files and methods: like units, references of a stated kind, rows that stay."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import networks_at_hand as nets
import real_files
import snrecon.recon as recon
from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.io import save_image
from snrecon.io.images import has_reference, read_images
from snrecon.metrics import score
from snrecon.noise import noise_map
from snrecon.physics.fourier import ifft
from snrecon.recon.zero_filled import root_sum_of_squares
from snrecon.report.demo import save_scan
from snrecon.report.evaluate import Row, centre, compare, reconstruct
from snrecon.report.score_table import collect, show, summary

MASK = {"kind": "equispaced_fraction", "acceleration": 2, "calibration": 12}


def rss(kspace: torch.Tensor) -> torch.Tensor:
    return ifft(kspace, (-2, -1)).abs().square().sum(-3).sqrt()


@pytest.fixture
def brain(tmp_path: Path) -> Path:
    """A fully sampled scan with its noise covariance."""
    folder = tmp_path / "scans"
    folder.mkdir()
    return save_scan(real_files.full_scan(), folder / "brain.npz")


@pytest.mark.parametrize("kind", ["rss", "matched"])
def test_without_undersampling_an_image_is_its_reference(brain: Path, kind: str) -> None:
    """Units agree without a fit: SENSE of everything is the matched reference exactly, and its
    root sum of squares apart from noise off the object."""
    (row,) = reconstruct(brain, recon.Sense(), None, reference=kind)
    assert row.nmse < (1e-9 if kind == "matched" else 5e-3)
    assert row.scale == pytest.approx(1, abs=0.01)
    assert (row.reference, row.mask, row.acceleration) == (kind, "none", 1.0)
    scan = real_files.full_scan()
    units = save_scan(  # maps of other units, which change the image's
        replace(scan, maps=3j * torch.ones_like(scan.kspace)), brain.with_name("scaled.npz"))
    (same,) = reconstruct(units, recon.ZeroFilled(), None, reference="matched")
    assert same.nmse < 1e-9


@pytest.mark.parametrize(("have", "want"), [((8, 6), (5, 3)), ((7, 9), (4, 4)), ((8, 7), (8, 7))])
def test_images_are_cropped_as_fastmri_crops(
    have: tuple[int, int], want: tuple[int, int]
) -> None:
    image = torch.arange(2 * math.prod(have)).reshape(2, *have)
    top, left = ((h - w) // 2 for h, w in zip(have, want, strict=True))
    found = centre(image, torch.empty(2, *want), "x")
    assert torch.equal(found, image[:, top : top + want[0], left : left + want[1]])


def test_a_network_of_whitened_kspace_is_scored_in_its_units(brain: Path) -> None:
    network = recon.KspaceModule(torch.nn.Identity(), ("kspace",), "kspace", combine="matched")
    (row,) = reconstruct(brain, network, None)
    assert row.nmse < 5e-3
    assert row.scale == pytest.approx(1, abs=0.01)


def test_scores_are_of_the_undersampled_scan(brain: Path) -> None:
    scan = real_files.full_scan()
    (row,) = reconstruct(brain, recon.ZeroFilled("rss"), MASK)
    from snrecon.physics.masks import make_mask

    mask = make_mask("equispaced_fraction", scan.grid, 2, calibration=12).tensor
    expected = score(root_sum_of_squares(scan.kspace, mask), rss(scan.kspace))
    assert row.nmse == pytest.approx(expected.nmse, rel=1e-5)
    assert row.ssim == pytest.approx(expected.ssim, rel=1e-5)
    assert row.acceleration == pytest.approx(mask.numel() / int(mask.sum()))
    (head,) = reconstruct(brain, recon.ZeroFilled("rss"), MASK, region="head")
    assert head.region == "head"
    assert head.psnr != pytest.approx(row.psnr, abs=0.1)
    (better,) = reconstruct(brain, recon.Sense(lamda=0.03), MASK)
    assert better.nmse < row.nmse


def test_a_3d_grid_is_scored_plane_by_plane(tmp_path: Path) -> None:
    one = real_files.full_scan()
    volume = torch.stack([one.kspace, 0.5 * one.kspace, 0 * one.kspace], dim=1)
    path = save_scan(Scan(volume, mask=torch.ones(3, 40, 32, dtype=torch.bool), noise=one.noise),
                     tmp_path / "grid.npz")
    mask = {"kind": "random", "acceleration": 2, "calibration": 12}
    (row,) = reconstruct(path, recon.ZeroFilled("rss"), mask)
    assert (row.slices, row.rows, row.columns) == (3, 40, 32)
    assert row.mask == "random"
    assert 0 < row.nmse < 1


def test_the_reference_of_a_fastmri_file_is_its_own_cropped(tmp_path: Path) -> None:
    data = real_files.write_brain(tmp_path / "f.h5", slices=2)
    whole = rss(data)
    with h5py.File(tmp_path / "f.h5", "a") as file:  # (slice, height, width), cut to 24 x 30
        stored = whole[:, 5:35, 4:28].transpose(-1, -2).numpy()
        file.create_dataset("reconstruction_rss", data=stored)
    assert has_reference(tmp_path / "f.h5")
    found = read_images(tmp_path / "f.h5")
    assert (found.kind, tuple(found.values.shape)) == ("rss", (2, 30, 24))
    (row,) = reconstruct(tmp_path / "f.h5", recon.ZeroFilled("rss"), None,
                         noise_covariance="identity")
    assert (row.slices, row.rows, row.columns) == (2, 30, 24)
    assert row.nmse < 1e-9
    (one,) = reconstruct(tmp_path / "f.h5", recon.ZeroFilled("rss"), None, slice=1,
                         noise_covariance="identity")
    assert one.slices == 1
    assert one.nmse < 1e-9


def test_finished_images_are_compared_as_they_are(tmp_path: Path) -> None:
    data = real_files.write_brain(tmp_path / "f.h5", slices=1)
    image = rss(data)
    with h5py.File(tmp_path / "f.h5", "a") as file:
        file.create_dataset("reconstruction_rss", data=image.transpose(-1, -2).numpy())
    save_image(1.5 * image, tmp_path / "x.h5", method="zero_filled:rss")
    (row,) = compare(tmp_path / "x.h5", tmp_path / "f.h5")
    assert row.nmse == pytest.approx(0.25, rel=1e-4)  # no hidden rescaling
    assert row.scale == pytest.approx(1 / 1.5, rel=1e-4)
    assert math.isnan(row.acceleration)
    with h5py.File(tmp_path / "submitted.h5", "w") as file:
        file.create_dataset("reconstruction", data=image.transpose(-1, -2).numpy())
    (same,) = compare(tmp_path / "submitted.h5", tmp_path / "f.h5", reference="rss")
    assert same.nmse < 1e-9
    with pytest.raises(InputError, match="of kind rss"):
        list(compare(tmp_path / "x.h5", tmp_path / "f.h5", reference="matched"))
    with pytest.raises(InputError, match="does not say"):
        list(compare(tmp_path / "x.h5", tmp_path / "submitted.h5"))
    (told,) = compare(tmp_path / "x.h5", tmp_path / "submitted.h5", reference="rss")
    assert told.reference == "rss"


@pytest.mark.parametrize("ending", ["h5", "npz"])
def test_a_reconstruction_of_undersampled_data_is_no_reference(
    tmp_path: Path, ending: str
) -> None:
    full = real_files.full_scan()
    lines = torch.arange(full.grid[0])[:, None].expand(full.grid)
    part = full.undersample((lines % 2 == 0) | ((lines - full.grid[0] // 2).abs() < 12))
    files = []
    for name, scan in (("full", full), ("part", part)):
        files.append(tmp_path / f"{name}.{ending}")
        noise_map(recon.Sense(lamda=0.1), scan, tolerance=0.5).save(files[-1])
    (row,) = compare(files[1], files[0])
    assert (row.reference, row.acceleration) == ("matched", pytest.approx(part.acceleration))
    assert part.acceleration == pytest.approx(1.25)
    with pytest.raises(InputError, match=r"of undersampled data, R = 1\.25"):
        list(compare(files[0], files[1]))
    (told,) = compare(files[0], files[1], reference="matched")
    assert told.acceleration == 1


def test_folders_are_paired_by_name(tmp_path: Path) -> None:
    for folder, factor in (("a", 1.0), ("b", 1.1)):
        (tmp_path / folder).mkdir()
        for name in ("one", "two"):
            image = factor * torch.rand(9, 9, generator=torch.Generator().manual_seed(len(name)))
            ending = "h5" if folder == "a" else "npz"
            save_image(image, tmp_path / folder / f"{name}.{ending}", method="zero_filled:rss")
    rows = list(compare(tmp_path / "a", tmp_path / "b"))
    assert [row.volume for row in rows] == ["one.h5", "two.h5"]
    (tmp_path / "b" / "two.npz").unlink()
    with pytest.raises(InputError, match=r"no reference named like two\.h5"):
        compare(tmp_path / "a", tmp_path / "b")


def test_what_cannot_be_scored(tmp_path: Path, brain: Path) -> None:
    scan = real_files.full_scan()
    mask = torch.ones(scan.grid, dtype=torch.bool)
    mask[1::2] = False
    part = save_scan(scan.undersample(mask), tmp_path / "part.npz")
    with pytest.raises(InputError, match=r"part\.npz.*undersampled"):
        list(reconstruct(part, recon.ZeroFilled(), None))
    with pytest.raises(InputError, match=r"no coil maps.*rss"):
        list(reconstruct(brain, recon.ZeroFilled("rss"), MASK, reference="matched"))
    with pytest.raises(InputError, match="no such file"):
        reconstruct(tmp_path / "nothing.h5", recon.ZeroFilled(), None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no files that end in"):
        reconstruct(tmp_path / "empty", recon.ZeroFilled(), None)
    for shape in ((9, 8), (2, 9, 9)):
        save_image(torch.ones(shape), tmp_path / "small.h5", method="zero_filled:rss")
        save_image(torch.ones(9, 9), tmp_path / "r.h5", method="zero_filled:rss")
        with pytest.raises(InputError, match="not of the same scan"):
            list(compare(tmp_path / "small.h5", tmp_path / "r.h5"))
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(InputError, match="neither"):
        read_images(tmp_path / "text.h5")
    with pytest.raises(InputError, match="no array 'image'"):
        read_images(part)
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file.create_dataset("other", data=np.zeros(3))
    with pytest.raises(InputError, match="no images"):
        read_images(tmp_path / "none.h5")


def row(volume: str, nmse: float) -> Row:
    return Row(volume, "sense", "rss", "full", 1, 8, 8, "random", 3.9, nmse, 30.0, 0.9, 1.0)


def test_rows_are_written_and_summarised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = collect(iter([row("a", 0.1), row("b", 0.3)]), tmp_path / "s.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["s.csv"]
    with (tmp_path / "s.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert [line["volume"] for line in lines] == ["a", "b", "(mean)", "(sd)", "(count)"]
    assert float(lines[2]["nmse"]) == pytest.approx(0.2)
    assert float(lines[3]["nmse"]) == pytest.approx(np.std([0.1, 0.3], ddof=1))
    assert float(lines[4]["ssim"]) == 2
    assert {line["reference"] for line in lines[:2]} == {"rss"}
    assert math.isnan(summary(rows[:1])["sd"]["nmse"])
    import sys

    show([*rows, replace(rows[0], scale=3.0), replace(rows[0], scale=3.0, volume="[x]")],
         sys.stdout)
    printed = capsys.readouterr().out
    for word in ("root sum of squares", "sense", "random", "mean of 4", "0.1000", "[x]"):
        assert word in printed
    assert "same units" in printed


def test_interrupted_rows_stay_and_failed_ones_do_not(tmp_path: Path) -> None:
    def stopped(error: type[BaseException]):  # type: ignore[no-untyped-def]
        yield row("a", 0.1)
        raise error

    with pytest.raises(KeyboardInterrupt):
        collect(stopped(KeyboardInterrupt), tmp_path / "s.csv")
    with (tmp_path / "s.csv").open() as stream:
        assert [line["volume"] for line in csv.DictReader(stream)] == ["a"]
    with pytest.raises(InputError):
        collect(stopped(InputError), tmp_path / "t.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["s.csv"]
    with pytest.raises(InputError, match="cannot be written"):
        collect([row("a", 0.1)], tmp_path / "no" / "t.csv")


def test_a_root_sum_of_squares_of_whitened_coils_has_a_reference_of_such(brain: Path) -> None:
    network = torch.nn.Identity()
    white = recon.KspaceModule(network, ("kspace",), "kspace", pairs=False)
    (row,) = reconstruct(brain, white, None)
    assert row.nmse < 1e-9
    stored = recon.KspaceModule(network, ("kspace",), "kspace", pairs=False, whiten=False)
    (row,) = reconstruct(brain, stored, None)
    assert row.nmse < 1e-9


@pytest.mark.parametrize("ending", ["h5", "npz"])
def test_a_result_says_how_its_coils_were_combined(tmp_path: Path, ending: str) -> None:
    for combine in ("rss", "matched"):
        path = tmp_path / f"{combine}.{ending}"
        save_image(torch.ones(8, 8), path, method="e2e_varnet", metadata={"combine": combine})
        assert read_images(path).kind == combine


@pytest.mark.parametrize("crop", [None, (30, 24), (20, 16)])
def test_whitened_coils_are_scored_over_the_part_that_the_file_shows(tmp_path: Path, crop) -> None:
    data = real_files.write_brain(tmp_path / "f.h5", slices=1)
    with h5py.File(tmp_path / "f.h5", "a") as file:
        stored = rss(data)[:, 5:35, 4:28].transpose(-1, -2).numpy()
        file.create_dataset("reconstruction_rss", data=stored)
    network = recon.E2EVarNet(nets.e2e_varnet(), combine="rss", crop=crop)
    (row,) = reconstruct(tmp_path / "f.h5", network, None, noise_covariance="identity")
    assert (row.rows, row.columns) == (crop or (30, 24))
    kept = recon.KspaceModule(torch.nn.Identity(), ("kspace",), "kspace", pairs=False)
    (row,) = reconstruct(tmp_path / "f.h5", kept, None, noise_covariance="identity")
    assert (row.rows, row.columns) == (30, 24)
    assert row.nmse < 1e-9
