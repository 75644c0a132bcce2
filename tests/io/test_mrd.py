"""ISMRMRD files written with its own library from a known object: is the object found again?"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ismrmrd = pytest.importorskip("ismrmrd")

import mrd_files as mrd  # noqa: E402
from snrecon.data import Scan  # noqa: E402
from snrecon.errors import MissingExtraError, SnreconWarning  # noqa: E402
from snrecon.io.mrd import is_mrd, load_mrd  # noqa: E402

NY, NX, COILS = 16, 20, 3


@pytest.fixture(autouse=True)
def _no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SnreconWarning)
        yield


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return mrd.maps(COILS, NY, NX) * mrd.phantom(NY, NX)


@pytest.fixture(scope="module")
def kspace(images: np.ndarray) -> np.ndarray:
    """With two-fold readout oversampling, ``(coil, ky, 2 kx)``."""
    return mrd.centred(mrd.oversampled(images), (-2, -1))


def image(kspace: Any, axes: tuple[int, ...] = (-2, -1)) -> np.ndarray:
    return mrd.centred(np.asarray(kspace), axes, inverse=True)


def assert_same(found: Any, wanted: np.ndarray, tolerance: float = 2e-6) -> None:
    found = np.asarray(found)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < tolerance * np.abs(wanted).max()


HEAD = mrd.header((2 * NX, NY, 1))


def test_full_scan_with_readout_oversampling(
    tmp_path: Path, images: np.ndarray, kspace: np.ndarray
) -> None:
    path = mrd.write(tmp_path / "scan.h5", HEAD, mrd.lines(kspace))
    scan = load_mrd(path)
    assert is_mrd(path)
    assert (scan.grid, scan.coils, scan.layout, scan.acceleration) == ((NY, NX), COILS, "grid", 1.0)
    assert scan.kspace.dtype == torch.complex64
    assert scan.noise is None
    assert scan.repetitions is None
    assert scan.source == str(path)
    assert_same(image(scan.kspace), images)


def test_acquisition_order_does_not_matter(tmp_path: Path, kspace: np.ndarray) -> None:
    order = np.random.default_rng(0).permutation(NY)
    a = load_mrd(mrd.write(tmp_path / "a.h5", HEAD, mrd.lines(kspace)))
    b = load_mrd(mrd.write(tmp_path / "b.h5", HEAD, mrd.lines(kspace, order)))
    assert torch.equal(a.kspace, b.kspace)


def test_odd_matrix_without_oversampling(tmp_path: Path) -> None:
    images = mrd.maps(2, 15, 13) * mrd.phantom(15, 13)
    head = mrd.header((13, 15, 1), recon=(13, 15, 1), recon_fov=(400.0, 220.0, 5.0))
    scan = load_mrd(mrd.write(tmp_path / "odd.h5", head, mrd.lines(mrd.centred(images, (-2, -1)))))
    assert_same(image(scan.kspace), images)
    assert "readout_oversampling_removed" not in scan.attributes


def test_reversed_readouts_and_discarded_samples(
    tmp_path: Path, images: np.ndarray, kspace: np.ndarray
) -> None:
    """Every other line from the right; three and two samples of garbage around each readout."""
    readouts = []
    for y in range(NY):
        data = kspace[:, y] if y % 2 else kspace[:, y, ::-1]
        data = np.pad(data, ((0, 0), (3, 2)), constant_values=1e6)
        echo = 3 + (NX if y % 2 else NX - 1)
        readouts.append(
            mrd.readout(
                data,
                *(() if y % 2 else ("IS_REVERSE",)),
                y=y,
                discard_pre=3,
                discard_post=2,
                center_sample=echo,
            )
        )
    scan = load_mrd(mrd.write(tmp_path / "reversed.h5", HEAD, readouts))
    assert_same(image(scan.kspace), images)


def test_partial_fourier_sits_around_the_centre(
    tmp_path: Path, images: np.ndarray, kspace: np.ndarray
) -> None:
    """Encode steps count from the first acquired line; the header gives the centre's step."""
    missing = NY // 4
    readouts = [mrd.readout(kspace[:, y], y=y - missing) for y in range(missing, NY)]
    head = mrd.header((2 * NX, NY, 1), centre=(NY // 2 - missing, 0))
    scan = load_mrd(mrd.write(tmp_path / "pf.h5", head, readouts))
    assert scan.sampled[:, 0].tolist() == [False] * missing + [True] * (NY - missing)
    truth = mrd.centred(images, (-2, -1))
    truth[:, :missing] = 0
    assert_same(scan.kspace, truth)


def test_partial_echo_without_oversampling(tmp_path: Path, images: np.ndarray) -> None:
    truth = mrd.centred(images, (-2, -1))
    cut = 6
    head = mrd.header((NX, NY, 1), recon=(NX, NY, 1), recon_fov=(400.0, 220.0, 5.0))
    path = mrd.write(
        tmp_path / "echo.h5", head, mrd.lines(truth[:, :, cut:], center_sample=NX // 2 - cut)
    )
    scan = load_mrd(path)
    assert scan.sampled[3].tolist() == [False] * cut + [True] * (NX - cut)
    truth[:, :, :cut] = 0
    assert_same(scan.kspace, truth)


@pytest.mark.parametrize("cut", [10, 11])
@pytest.mark.parametrize("side", ["start", "end"])
def test_partial_echo_with_oversampling(tmp_path: Path, cut: int, side: str) -> None:
    """The mask follows the acquired window; the signal errs only at the ends of the window."""
    nx = 64
    images = mrd.maps(2, NY, nx) * mrd.phantom(NY, nx)
    full = mrd.centred(mrd.oversampled(images), (-2, -1))
    kept = slice(cut, None) if side == "start" else slice(None, 2 * nx - cut)
    echo = nx - cut if side == "start" else nx
    head = mrd.header((2 * nx, NY, 1))
    path = mrd.write(tmp_path / "echo.h5", head, mrd.lines(full[:, :, kept], center_sample=echo))
    scan = load_mrd(path)
    columns = scan.sampled[0]
    missing = (cut + 1) // 2
    # An odd cut loses one of the oversampled samples; the window then starts half a step off.
    assert nx - missing - 1 <= int(columns.sum()) <= nx - cut // 2
    assert bool(columns[nx // 2])
    assert bool(columns[-1 if side == "start" else 0])
    truth = mrd.centred(images, (-2, -1)) * columns.numpy()
    error = scan.kspace.numpy() - truth
    assert np.linalg.norm(error) < 0.02 * np.linalg.norm(truth)
    inner = slice(missing + 4, nx - missing - 4)
    assert np.linalg.norm(error[..., inner]) < 0.003 * np.linalg.norm(truth)


def test_embedded_calibration_lines(tmp_path: Path, images: np.ndarray, kspace: np.ndarray) -> None:
    lattice = range(0, NY, 2)
    block = range(5, 11)
    both = [y for y in block if y in lattice]
    only = [y for y in block if y not in lattice]
    readouts = mrd.lines(kspace, [y for y in lattice if y not in block])
    readouts += mrd.lines(kspace, both, "IS_PARALLEL_CALIBRATION_AND_IMAGING")
    readouts += mrd.lines(kspace, only, "IS_PARALLEL_CALIBRATION")
    head = mrd.header((2 * NX, NY, 1), acceleration=(2, 1), mode="embedded")
    scan = load_mrd(mrd.write(tmp_path / "acs.h5", head, readouts))
    sampled = np.zeros(NY, dtype=bool)
    sampled[[*lattice, *only]] = True
    assert scan.sampled[:, 0].tolist() == sampled.tolist()
    assert scan.maps is None
    assert scan.attributes["nominal_acceleration"] == (2, 1)
    assert scan.acceleration == NY / sampled.sum()
    assert_same(scan.kspace, mrd.centred(images, (-2, -1)) * sampled[:, None])


@pytest.mark.parametrize("mode", ["separate", None])
def test_separate_reference_scan_gives_the_maps(tmp_path: Path, mode: str | None) -> None:
    """Its other contrast must not enter k-space; unfolding with its maps gives the object."""
    ny, nx = 24, 24
    truth, sensitivity = mrd.phantom(ny, nx, seed=3), mrd.maps(4, ny, nx)
    kspace = mrd.centred(mrd.oversampled(sensitivity * truth), (-2, -1))
    other = mrd.centred(mrd.oversampled(sensitivity * (3.0 + 0 * truth)), (-2, -1))
    readouts = mrd.lines(other, range(3, 21), "IS_PARALLEL_CALIBRATION")
    readouts += mrd.lines(kspace, range(0, ny, 2))
    head = mrd.header((2 * nx, ny, 1), acceleration=(2, 1), mode=mode)
    scan = load_mrd(mrd.write(tmp_path / "separate.h5", head, readouts))
    assert scan.acceleration == 2.0
    wanted = mrd.centred(sensitivity * truth, (-2, -1))
    wanted[:, 1::2] = 0
    assert_same(scan.kspace, wanted)
    assert scan.maps is not None
    folded, s = image(scan.kspace), scan.maps.numpy().astype(complex)
    found = np.zeros_like(truth)
    for y in range(ny // 2):
        for x in range(nx):
            pair = s[:, [y, y + ny // 2], x]
            found[[y, y + ny // 2], x] = np.linalg.lstsq(pair, 2 * folded[:, y, x], rcond=1e-6)[0]
    inside = (np.abs(truth) > 0) & (np.abs(s).sum(0) > 0)
    assert inside.sum() > 0.95 * (np.abs(truth) > 0).sum()
    error = np.abs(found[inside]) - np.abs(truth[inside])
    assert np.linalg.norm(error) < 0.05 * np.linalg.norm(truth[inside])


def test_volume_with_two_phase_encodings(tmp_path: Path) -> None:
    nz, ny, nx = 6, 10, 8
    images = mrd.maps(2, nz, ny, nx) * mrd.phantom(nz, ny, nx, seed=2)
    kspace = mrd.centred(mrd.oversampled(images), (-3, -2, -1))
    readouts = [
        mrd.readout(kspace[:, z, y], y=y, z=z) for z in range(nz) for y in range(ny) if y + z != 3
    ]
    scan = load_mrd(mrd.write(tmp_path / "3d.h5", mrd.header((2 * nx, ny, nz)), readouts))
    assert (scan.grid, scan.layout) == ((nz, ny, nx), "grid")
    sampled = np.add.outer(np.arange(nz), np.arange(ny)) != 3
    assert np.array_equal(scan.sampled[..., 0].numpy(), sampled)
    assert_same(scan.kspace, mrd.centred(images, (-3, -2, -1)) * sampled[..., None])


def test_slice_and_phase_oversampling_of_a_full_volume(tmp_path: Path) -> None:
    """Removed where every line was acquired; kept, and said so, where not."""
    nz, ny, nx = 4, 8, 8
    images = mrd.maps(2, nz, ny, nx) * mrd.phantom(nz, ny, nx, seed=2)
    large = mrd.oversampled(mrd.oversampled(mrd.oversampled(images), axis=-2), axis=-3)
    kspace = mrd.centred(large, (-3, -2, -1))
    head = mrd.header(
        (2 * nx, 2 * ny, 2 * nz),
        recon=(nx, ny, nz),
        fov=(400.0, 440.0, 80.0),
        recon_fov=(200.0, 220.0, 40.0),
    )
    readouts = [
        mrd.readout(kspace[:, z, y], y=y, z=z) for z in range(2 * nz) for y in range(2 * ny)
    ]
    scan = load_mrd(mrd.write(tmp_path / "full.h5", head, readouts))
    assert scan.acceleration == 1.0
    assert_same(image(scan.kspace, (-3, -2, -1)), images)
    assert scan.geometry is not None
    np.testing.assert_allclose(scan.geometry.voxel_size, (0.01, 0.0275, 0.025))
    scan = load_mrd(mrd.write(tmp_path / "part.h5", head, readouts[1:]))
    assert scan.grid == (2 * nz, 2 * ny, nx)
    assert "phase and slice" in scan.attributes["oversampling_kept"]


def stack_readouts(kspaces: list[np.ndarray], **fields: Any) -> list[Any]:
    """Slices 0, 1, 2 at positions that are not in the order of their numbers, interleaved."""
    place = {0: 12.0, 1: 0.0, 2: 6.0}
    return [
        mrd.readout(kspaces[s][:, y], y=y, slice=s, position=(place[s] + 1.0, 2.0, 3.0), **fields)
        for y in range(NY)
        for s in (0, 2, 1)
    ]


def test_interleaved_slices_are_sorted_by_position(tmp_path: Path) -> None:
    images = [mrd.maps(COILS, NY, NX) * mrd.phantom(NY, NX, seed=s) for s in range(3)]
    kspaces = [mrd.centred(mrd.oversampled(i), (-2, -1)) for i in images]
    scan = load_mrd(mrd.write(tmp_path / "stack.h5", HEAD, stack_readouts(kspaces)))
    assert (scan.layout, scan.slices, scan.grid) == ("stack", 3, (NY, NX))
    for found, wanted in zip(scan, (1, 2, 0), strict=True):
        assert_same(image(found.kspace), images[wanted])
    assert scan.geometry is not None
    np.testing.assert_allclose(scan.geometry.voxel_size, (0.006, 0.22 / NY, 0.2 / NX), rtol=1e-6)
    np.testing.assert_allclose(scan.geometry.position, (0.001, 0.002, 0.003), rtol=1e-6)
    last = list(scan)[2].geometry
    assert last is not None
    np.testing.assert_allclose(last.position, (0.013, 0.002, 0.003), rtol=1e-6)
    assert scan.attributes["slice_thickness_m"] == pytest.approx(0.005)


def test_geometry_is_in_metres_and_patient_coordinates(tmp_path: Path, kspace: np.ndarray) -> None:
    geometry = load_mrd(mrd.write(tmp_path / "g.h5", HEAD, mrd.lines(kspace))).geometry
    assert geometry is not None
    np.testing.assert_allclose(geometry.position, (0.01, -0.02, 0.03))
    assert geometry.readout_direction == (0.0, 1.0, 0.0)
    assert geometry.phase_direction == (0.0, 0.0, 1.0)
    assert geometry.slice_direction == (1.0, 0.0, 0.0)
    # A voxel beside the centre along the readout lies one voxel to the back: -y in RAS.
    affine = geometry.affine((NY, NX))
    centre = affine @ [NX // 2, NY // 2, 0, 1]
    np.testing.assert_allclose(centre[:3], (-10, 20, 30), atol=1e-6)
    np.testing.assert_allclose(
        (affine @ [NX // 2 + 1, NY // 2, 0, 1])[:3] - centre[:3], (0, -10, 0)
    )


def test_unusable_geometry_is_left_out(tmp_path: Path, kspace: np.ndarray) -> None:
    readouts = mrd.lines(kspace, read_dir=(0.0, 0.0, 0.0))
    scan = load_mrd(mrd.write(tmp_path / "g.h5", HEAD, readouts))
    assert scan.geometry is None
    assert "orthonormal" in scan.attributes["orientation"]


def test_averages_are_averaged(tmp_path: Path, images: np.ndarray, kspace: np.ndarray) -> None:
    readouts = [
        *mrd.lines(kspace * 0.5, average=0),
        *mrd.lines(kspace * 1.5, average=1),
    ]
    scan = load_mrd(mrd.write(tmp_path / "averages.h5", HEAD, readouts))
    assert scan.attributes["averages"] == 2
    assert_same(image(scan.kspace), images)


def test_repetitions(tmp_path: Path, kspace: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    drawn = [
        kspace + rng.standard_normal(kspace.shape) + 1j * rng.standard_normal(kspace.shape)
        for _ in range(4)
    ]
    chosen = range(0, NY, 2)
    readouts = [r for i, k in enumerate(drawn) for r in mrd.lines(k, chosen, repetition=i)]
    scan = load_mrd(mrd.write(tmp_path / "reps.h5", HEAD, readouts))
    assert scan.repetitions is not None
    assert scan.repetitions.shape == (4, COILS, NY, NX)
    assert torch.equal(scan.repetitions[0], scan.kspace)
    for found, noisy in zip(scan.repetitions, drawn, strict=True):
        cropped = image(noisy)[..., NX // 2 : NX // 2 + NX]
        wanted = mrd.centred(cropped, (-2, -1))
        wanted[:, 1::2] = 0
        assert_same(found, wanted)
    # The spread over repetitions of white noise of variance 2, cropped: still 2.
    spread = scan.repetitions[:, :, ::2].var(dim=0).mean()
    assert float(spread) == pytest.approx(2.0, rel=0.05)


def test_repetitions_that_sample_other_points_are_left_out(
    tmp_path: Path, kspace: np.ndarray
) -> None:
    readouts = mrd.lines(kspace, range(0, NY, 2), repetition=0)
    readouts += mrd.lines(kspace, range(1, NY, 2), repetition=1)
    readouts += mrd.lines(kspace * 2, range(0, NY, 2), repetition=2)
    scan = load_mrd(mrd.write(tmp_path / "reps.h5", HEAD, readouts))
    assert scan.repetitions is not None
    assert scan.repetitions.shape[0] == 2
    torch.testing.assert_close(scan.repetitions[1], 2 * scan.kspace)
    assert scan.attributes["repetitions_left_out"].startswith("1,")


def test_repetitions_of_a_stack(tmp_path: Path) -> None:
    kspaces = [
        mrd.centred(mrd.oversampled(mrd.maps(2, NY, NX) * mrd.phantom(NY, NX, seed=s)), (-2, -1))
        for s in range(3)
    ]
    readouts = [r for i in range(2) for r in stack_readouts(kspaces, repetition=i)]
    scan = load_mrd(mrd.write(tmp_path / "s.h5", HEAD, readouts))
    assert scan.repetitions is not None
    assert scan.repetitions.shape == (2, 3, 2, NY, NX)
    part = scan.slice(1)
    assert part.repetitions is not None
    assert torch.equal(part.repetitions[1], part.kspace)


def test_what_is_not_read_is_counted(
    tmp_path: Path, images: np.ndarray, kspace: np.ndarray
) -> None:
    rubbish = np.full((COILS, 7), 1e6)
    readouts = [
        mrd.readout(rubbish, "IS_NAVIGATION_DATA"),
        mrd.readout(rubbish, "IS_PHASECORR_DATA"),
        mrd.readout(rubbish, "IS_PHASECORR_DATA", "IS_REVERSE"),
        mrd.readout(rubbish, "IS_RTFEEDBACK_DATA"),
        mrd.readout(rubbish, "IS_HPFEEDBACK_DATA"),
        mrd.readout(rubbish, "IS_DUMMYSCAN_DATA"),
        mrd.readout(rubbish, "IS_SURFACECOILCORRECTIONSCAN_DATA"),
        *mrd.lines(kspace, contrast=0),
        *mrd.lines(kspace * 9, contrast=1),
        *mrd.lines(kspace * 9, range(3), contrast=0, encoding_space_ref=1),
    ]
    head = mrd.header((2 * NX, NY, 1), encodings=2)
    scan = load_mrd(mrd.write(tmp_path / "all.h5", head, readouts))
    assert_same(image(scan.kspace), images)
    assert scan.attributes["skipped_readouts"] == {
        "navigator": 1,
        "phase correction": 2,
        "feedback (RT)": 1,
        "feedback (HP)": 1,
        "dummy": 1,
        "surface coil correction": 1,
        "other encoding space": 3,
        "other contrast": NY,
    }
    assert scan.attributes["contrasts"] == "2 in the file, number 0 used"


def test_attributes_name_nobody(tmp_path: Path, kspace: np.ndarray) -> None:
    scan = load_mrd(mrd.write(tmp_path / "a.h5", HEAD, mrd.lines(kspace)))
    assert scan.attributes["vendor"] == "Vendor"
    assert scan.attributes["field_strength_T"] == pytest.approx(2.89)
    assert scan.attributes["repetition_time_s"] == pytest.approx(0.5)
    assert scan.attributes["echo_time_s"] == pytest.approx([0.004, 0.008])
    assert scan.attributes["dwell_time_s"] == pytest.approx(5e-6)
    assert "Secret" not in str(scan.attributes)


def test_key_names_the_group(tmp_path: Path, kspace: np.ndarray) -> None:
    path = mrd.write(tmp_path / "two.h5", HEAD, mrd.lines(kspace), key="first")
    only = load_mrd(path)
    mrd.write(path, HEAD, mrd.lines(2 * kspace), key="dataset")
    torch.testing.assert_close(load_mrd(path).kspace, 2 * only.kspace)
    assert torch.equal(load_mrd(path, key="first").kspace, only.kspace)


def test_epi_is_read_with_a_warning(tmp_path: Path, kspace: np.ndarray) -> None:
    head = mrd.header((2 * NX, NY, 1), trajectory="epi")
    path = mrd.write(tmp_path / "epi.h5", head, mrd.lines(kspace))
    with pytest.warns(SnreconWarning, match="ghost"):
        assert isinstance(load_mrd(path), Scan)


def test_missing_library_names_the_extra(
    tmp_path: Path, kspace: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mrd.write(tmp_path / "a.h5", HEAD, mrd.lines(kspace))
    monkeypatch.setitem(__import__("sys").modules, "ismrmrd", None)
    assert is_mrd(path)
    with pytest.raises(MissingExtraError, match=r"snrecon\[mrd\]"):
        load_mrd(path)
