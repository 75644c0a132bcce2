"""NIfTI volumes and DICOM folders as training images: axes, voxel sizes, scaling, errors."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from snrecon.errors import InputError, MissingExtraError
from snrecon.io.magnitude import read_dicom, read_nifti
from snrecon.training.images import load_source

MARKED = bytes(128) + b"DICM"
"""How every DICOM file begins."""
VALUES = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


def write_nifti(path: Path, values: np.ndarray, sizes: tuple[float, ...] = (1, 1, 1)) -> Path:
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(values, np.diag([*sizes, 1.0])), path)
    return path


@pytest.mark.parametrize(
    ("sizes", "plane", "axis"),
    [((1, 1, 4), None, 2), ((5, 1, 1), None, 0), ((1, 1, 1), None, 2), ((1, 1, 4), "sagittal", 0),
     ((1, 1, 4), "coronal", 1), ((1.1, 1, 1), None, 2)],
)
def test_slices_of_nifti(
    tmp_path: Path, sizes: tuple[float, ...], plane: str | None, axis: int
) -> None:
    found = read_nifti(write_nifti(tmp_path / "a.nii.gz", VALUES, sizes))
    slices, pixel = found.slices(plane)
    np.testing.assert_array_equal(slices, np.moveaxis(VALUES, axis, 0))
    assert pixel == pytest.approx([s for i, s in enumerate(sizes) if i != axis])


def test_header_scaling_and_odd_nifti(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(VALUES, np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    nibabel.save(image, tmp_path / "s.nii")
    expected = np.maximum(nibabel.load(tmp_path / "s.nii").get_fdata(), 0)
    np.testing.assert_allclose(read_nifti(tmp_path / "s.nii").values, expected)
    write_nifti(tmp_path / "one.nii.gz", VALUES[..., None])
    assert read_nifti(tmp_path / "one.nii.gz").values.shape == VALUES.shape
    write_nifti(tmp_path / "many.nii.gz", np.stack([VALUES, VALUES], -1))
    with pytest.raises(InputError, match=r"many\.nii\.gz.*three axes"):
        read_nifti(tmp_path / "many.nii.gz")
    write_nifti(tmp_path / "nan.nii.gz", np.full((3, 3, 3), np.nan, np.float32))
    with pytest.raises(InputError, match="NaN"):
        read_nifti(tmp_path / "nan.nii.gz")
    (tmp_path / "text.nii.gz").write_text("hello")
    with pytest.raises(InputError, match="cannot be read"):
        read_nifti(tmp_path / "text.nii.gz")
    with pytest.raises(InputError, match="no such file"):
        read_nifti(tmp_path / "absent.nii")


def test_sources_of_nifti(tmp_path: Path) -> None:
    """An anisotropic head: the header gives the pixel size, the finer one of both axes."""
    volume = np.zeros((30, 16, 5), np.float32)
    volume[6:24, 3:13, 1:4] = 800
    path = write_nifti(tmp_path / "head.nii.gz", volume, (2.0, 4.0, 9.0))
    source = load_source(str(path))
    assert source.voxel == 2.0
    assert tuple(source.slices.shape) == (3, 1, 30, 32)  # empty slices out, pixels square
    assert 0.9 < float(source.slices.max()) < 1.1
    assert load_source(f"{path}:axial", voxel=3.0).voxel == 3.0
    side = load_source(f"{path}:sagittal")
    assert tuple(side.slices.shape[2:]) == (16, round(5 * 9 / 4))
    assert side.voxel == 4.0
    write_nifti(tmp_path / "zero.nii.gz", 0 * volume)
    with pytest.raises(InputError, match="empty"):
        load_source(str(tmp_path / "zero.nii.gz"))


def test_a_missing_library_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    (tmp_path / "a.nii.gz").touch()
    with pytest.raises(MissingExtraError, match=r"snrecon\[nifti\]"):
        load_source(str(tmp_path / "a.nii.gz"))
    (tmp_path / "image").write_bytes(MARKED)
    with pytest.raises(MissingExtraError, match=r"snrecon\[dicom\]"):
        load_source(str(tmp_path))


def test_a_folder_without_images_is_no_matter_of_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    for _ in range(2):
        with pytest.raises(InputError, match="holds no scans or images") as caught:
            load_source(str(tmp_path))
        assert not isinstance(caught.value, MissingExtraError)
        assert "snrecon prepare" in str(caught.value)
        np.savez(tmp_path / "scan.npz", kspace=np.ones((2, 8, 8), "c8"))
        (tmp_path / "inside").mkdir(exist_ok=True)


class Invalid(Exception):
    pass


@pytest.fixture
def dicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for pydicom that hands out what tests put in, by file name."""
    images: dict[str, Any] = {}

    def read(path: Path) -> Any:
        found = images.get(Path(path).name)
        if found is None:
            raise Invalid(path)
        if isinstance(found, Exception):
            raise found
        return found

    library, errors = ModuleType("pydicom"), ModuleType("pydicom.errors")
    library.dcmread = read  # type: ignore[attr-defined]
    errors.InvalidDicomError = Invalid  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pydicom", library)
    monkeypatch.setitem(sys.modules, "pydicom.errors", errors)
    return images


def put(folder: Path, images: dict[str, Any], name: str, image: Any) -> None:
    (folder / name).write_bytes(MARKED)
    images[name] = image


def single(z: float, value: int, **changes: Any) -> SimpleNamespace:
    """An axial image: rows 3 mm apart, columns 2 mm."""
    facts = {
        "pixel_array": np.full((6, 8), value, np.uint16), "PixelData": b"", "filename": "f",
        "PixelSpacing": [3.0, 2.0], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [0.0, 0.0, z], "RescaleSlope": 2, "RescaleIntercept": -1,
        "SeriesInstanceUID": "1.2", "SeriesDescription": "T1",
    }
    return SimpleNamespace(**{**facts, **changes})


def test_a_series_is_sorted_by_position(tmp_path: Path, dicom: dict[str, Any]) -> None:
    for name, z, value in (("c", 0.0, 1), ("a", 10.0, 3), ("b", 5.0, 2)):
        put(tmp_path, dicom, name, single(z, value))
    (tmp_path / "readme.txt").write_text("not DICOM")
    put(tmp_path, dicom, "DICOMDIR", SimpleNamespace(filename="DICOMDIR"))
    found = read_dicom(tmp_path)
    assert found.values[:, 0, 0].tolist() == [1, 3, 5]  # 2 v - 1
    assert found.spacing == pytest.approx((5.0, 3.0, 2.0))
    slices, pixel = found.slices()
    assert slices.shape == (3, 6, 8)
    assert pixel == pytest.approx((3.0, 2.0))


def test_frames_of_one_file(tmp_path: Path, dicom: dict[str, Any]) -> None:
    def frame(z: float) -> SimpleNamespace:
        position = SimpleNamespace(ImagePositionPatient=[0.0, 0.0, z])
        return SimpleNamespace(PlanePositionSequence=[position])

    shared = SimpleNamespace(
        PixelMeasuresSequence=[SimpleNamespace(PixelSpacing=[1.5, 1.5])],
        PlaneOrientationSequence=[SimpleNamespace(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelValueTransformationSequence=[SimpleNamespace(RescaleSlope=3, RescaleIntercept=0)],
    )
    pixels = np.stack([np.full((4, 4), v, np.uint16) for v in (7, 5)])
    put(tmp_path, dicom, "e", SimpleNamespace(
        pixel_array=pixels, PixelData=b"", filename="e", SeriesInstanceUID="1",
        PerFrameFunctionalGroupsSequence=[frame(8.0), frame(2.0)],
        SharedFunctionalGroupsSequence=[shared]))
    found = read_dicom(tmp_path)
    assert found.values[:, 0, 0].tolist() == [15, 21]
    assert found.spacing == pytest.approx((6.0, 1.5, 1.5))


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        ([], "no DICOM images"),
        ([single(0, 1), single(5, 1, SeriesInstanceUID="9", SeriesDescription="T2")],
         r"2 series \(T1, T2\)"),
        ([single(0, 1), single(0, 2)], "at one place"),
        ([single(0, 1), single(5, 1, PixelSpacing=[1.0, 1.0])], "differ in matrix"),
        ([single(0, 1, PixelSpacing=None)], "PixelSpacing is missing"),
        ([single(0, 1, SamplesPerPixel=3)], "colour"),
        ([RuntimeError("broken\nfile")], "cannot be read"),
    ],
)
def test_folders_that_cannot_be_used(
    tmp_path: Path, dicom: dict[str, Any], images: list[Any], sentence: str
) -> None:
    for number, image in enumerate(images):
        put(tmp_path, dicom, f"i{number}", image)
    with pytest.raises(InputError, match=sentence) as caught:
        read_dicom(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_dicom_folder_is_a_source(tmp_path: Path, dicom: dict[str, Any]) -> None:
    for number in range(3):
        put(tmp_path, dicom, f"i{number}", single(6.0 * number, 100 * (number > 0)))
    source = load_source(str(tmp_path))
    assert tuple(source.slices.shape) == (2, 1, 9, 8)
    assert source.voxel == 2.0
