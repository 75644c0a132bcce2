"""Result files: what is written, where, and that it comes back."""

from __future__ import annotations

import json
import os
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import scan_files as files
from results_at_hand import OBLIQUE, result
from snrecon.data import NoiseMap, Scan
from snrecon.errors import InputError, MissingExtraError
from snrecon.io import load, load_result, read_cfl, save, save_image
from snrecon.io.cfl import write_pair

nibabel = pytest.importorskip("nibabel")


def assert_same(a: NoiseMap, b: NoiseMap) -> None:
    for f in fields(NoiseMap):
        left, right = getattr(a, f.name), getattr(b, f.name)
        if isinstance(left, torch.Tensor):
            assert left.dtype == right.dtype, f.name
            assert torch.equal(left, right), f.name
        else:
            assert left == right, f.name


@pytest.mark.parametrize("ending", ["h5", "hdf5", "npz"])
class TestRoundTrip:
    def test_everything(self, tmp_path: Path, ending: str) -> None:
        made = result()
        made.save(tmp_path / f"r.{ending}")
        assert_same(made, NoiseMap.load(tmp_path / f"r.{ending}"))
        assert os.listdir(tmp_path) == [f"r.{ending}"]

    def test_as_little_as_possible(self, tmp_path: Path, ending: str) -> None:
        made = result(
            (4, 6, 5),
            sigma_phase=None,
            g_factor=None,
            standard_error=None,
            covariance=None,
            seed=None,
            frozen=(),
            geometry=None,
            details={},
            layout="stack",
        )
        save(made, tmp_path / f"r.{ending}")
        assert_same(made, load_result(tmp_path / f"r.{ending}"))

    def test_real_images(self, tmp_path: Path, ending: str) -> None:
        made = result(image=result().image.abs(), sigma_phase=None)
        save(made, tmp_path / f"r.{ending}")
        back = load_result(tmp_path / f"r.{ending}")
        assert not back.image.is_complex()
        assert torch.equal(back.image, made.image)

    def test_double_precision_becomes_single(self, tmp_path: Path, ending: str) -> None:
        made = result(image=result().image.to(torch.complex128), sigma=result().sigma.double())
        save(made, tmp_path / f"r.{ending}")
        assert_same(result(), load_result(tmp_path / f"r.{ending}"))

    def test_details_as_json_can_hold_them(self, tmp_path: Path, ending: str) -> None:
        details = {
            "tensor": torch.arange(3),
            "number": np.float32(0.5),
            "nan": float("nan"),
            "path": Path("a"),
            3: (1, 2),
            "long": "x" * 100_000,
        }
        save(result(details=details), tmp_path / f"r.{ending}")
        back = load_result(tmp_path / f"r.{ending}").details
        assert back == {
            "tensor": [0, 1, 2],
            "number": 0.5,
            "nan": None,
            "path": "a",
            "3": [1, 2],
            "long": "x" * 100_000,
        }

    def test_a_result_is_not_a_scan(self, tmp_path: Path, ending: str) -> None:
        save(result(), tmp_path / f"r.{ending}")
        with pytest.raises(InputError, match="result with a noise map, not a scan"):
            load(tmp_path / f"r.{ending}")

    def test_damaged_contents(self, tmp_path: Path, ending: str) -> None:
        path = tmp_path / f"r.{ending}"
        for name, value, message in (
            ("sigma", None, "'sigma' is missing"),
            ("sigma", np.zeros((2, 2), np.float32), r"'sigma' is float32 of shape \(2, 2\)"),
            ("snr", np.full((6, 5), np.nan, np.float32), "'snr' contains NaN"),
            ("image", np.zeros((6, 5), np.float32), "the image is float32"),
        ):
            save(result(), path)
            if ending == "npz":
                with np.load(path) as archive:
                    entries = dict(archive)
                entries.pop(name)
                np.savez(path, **entries, **({} if value is None else {name: value}))
            else:
                with h5py.File(path, "a") as file:
                    del file[name]
                    if value is not None:
                        file[name] = value
            with pytest.raises(InputError, match=message):
                load_result(path)


def test_layout_of_the_hdf5_file(tmp_path: Path) -> None:
    made = result()
    save(made, tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5") as file:
        assert set(file) == {
            "image", "sigma", "sigma_complex", "sigma_phase", "snr", "g_factor",
            "standard_error", "covariance",
        }  # fmt: skip
        for name in file:
            kind = np.complex64 if name == "image" else np.float32
            assert file[name].dtype == kind
            np.testing.assert_array_equal(file[name][()], getattr(made, name).numpy())
        attributes = dict(file.attrs)
        assert file["sigma_phase"].attrs["units"] == "rad"
    assert attributes["estimator"] == "sketch"
    assert attributes["passes"] == 50.5
    assert attributes["seed"] == 7
    assert "E[n n^H]" in attributes["convention"]
    assert list(attributes["frozen"]) == ["coil maps", "λ"]
    assert attributes["method"] == "varnet:brain"
    assert attributes["units"] == made.units
    assert attributes["acceleration"] == 3.7
    assert attributes["snrecon_version"]
    assert json.loads(attributes["details"])["stops"] == [4, 8]


def test_npz_needs_no_pickle(tmp_path: Path) -> None:
    save(result(), tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz", allow_pickle=False) as archive:
        assert str(archive["method"]) == "varnet:brain"
        assert archive["image"].dtype == np.complex64
        assert archive["sigma"].dtype == np.float32


class TestNifti:
    def test_values_affine_and_sidecars(self, tmp_path: Path) -> None:
        made = result((4, 6, 5), layout="stack")
        save(made, tmp_path / "brain.nii.gz")
        names = ["image", "sigma", "sigma_complex", "sigma_phase", "snr", "g_factor"]
        names.append("standard_error")
        assert sorted(os.listdir(tmp_path)) == sorted(
            [f"brain_{n}.nii.gz" for n in names] + [f"brain_{n}.json" for n in names]
        )
        for name in names:
            volume = nibabel.load(tmp_path / f"brain_{name}.nii.gz")
            assert volume.get_data_dtype() == np.float32
            assert volume.shape == (5, 6, 4)
            expected = getattr(made, name).abs().numpy()
            np.testing.assert_array_equal(volume.get_fdata(), expected.transpose(2, 1, 0))
            sidecar = json.loads((tmp_path / f"brain_{name}.json").read_text())
            assert sidecar["quantity"] == name
            assert sidecar["method"] == "varnet:brain"
            assert sidecar["geometry"]["voxel_size"] == list(OBLIQUE.voxel_size)
        assert json.loads((tmp_path / "brain_sigma.json").read_text())["unit"] == made.units
        assert json.loads((tmp_path / "brain_sigma_phase.json").read_text())["unit"] == "rad"

    @pytest.mark.parametrize("layout", ["stack", "grid"])
    def test_oblique_affine_by_hand(self, tmp_path: Path, layout: str) -> None:
        save(result((4, 6, 5), layout=layout), tmp_path / "a.nii.gz")
        volume = nibabel.load(tmp_path / "a_sigma.nii.gz")
        first_slice = 0 if layout == "stack" else 2
        centre = volume.affine @ [5 // 2, 6 // 2, first_slice, 1]
        # LPS metres to RAS millimetres: x and y change sign.
        np.testing.assert_allclose(centre[:3], [-10, 20, 30], atol=1e-4)
        for axis, (direction, size) in enumerate(
            (
                (OBLIQUE.readout_direction, 1.0),
                (OBLIQUE.phase_direction, 2.0),
                (OBLIQUE.slice_direction, 5.0),
            )
        ):
            x, y, z = direction
            np.testing.assert_allclose(
                volume.affine[:3, axis], size * np.array([-x, -y, z]), atol=1e-5
            )
        np.testing.assert_allclose(volume.header.get_zooms(), (1, 2, 5), rtol=1e-6)
        np.testing.assert_allclose(volume.get_qform(), volume.affine, atol=1e-4)
        assert volume.header["sform_code"] == 1
        assert volume.header.get_xyzt_units()[0] == "mm"

    def test_without_geometry(self, tmp_path: Path) -> None:
        save(result(geometry=None), tmp_path / "a.nii")
        volume = nibabel.load(tmp_path / "a_image.nii")
        assert volume.shape == (5, 6)
        np.testing.assert_array_equal(volume.affine, np.eye(4))
        assert "no geometry" in json.loads((tmp_path / "a_image.json").read_text())["affine"]

    def test_without_the_library(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "nibabel", None)
        with pytest.raises(MissingExtraError, match=r"snrecon\[nifti\]"):
            save(result(), tmp_path / "a.nii.gz")
        assert not os.listdir(tmp_path)


def test_bart_output(tmp_path: Path) -> None:
    made = result((4, 6, 5), layout="stack")
    save(made, tmp_path / "v1.2.cfl")
    found = read_cfl(tmp_path / "v1.2")
    assert found.shape[:3] == (5, 6, 1)
    assert found.shape[13] == 4
    np.testing.assert_array_equal(found.squeeze(), made.image.numpy().transpose(2, 1, 0))
    sigma = read_cfl(tmp_path / "v1.2_sigma").squeeze()
    np.testing.assert_array_equal(sigma, made.sigma.numpy().transpose(2, 1, 0))
    facts = json.loads((tmp_path / "v1.2.json").read_text())
    assert facts["unit"]["snr"] == "1"
    assert facts["seed"] == 7


class TestNoNaN:
    def test_undefined_where_nothing_is(self, tmp_path: Path) -> None:
        made = result()
        void = made.image == 0
        nan = torch.tensor(float("nan"))
        made = replace(
            made,
            sigma=torch.where(void, nan, made.sigma),
            snr=torch.where(void, nan, made.snr),
            g_factor=torch.where(void, -nan, made.g_factor),  # type: ignore[arg-type]
        )
        save(made, tmp_path / "r.h5")
        assert_same(result(), load_result(tmp_path / "r.h5"))

    def test_no_noise_means_no_ratio(self, tmp_path: Path) -> None:
        made = result()
        sigma = made.sigma.clone()
        sigma[1, 1] = 0
        save(replace(made, sigma=sigma, snr=made.image.abs() / sigma), tmp_path / "r.npz")
        assert load_result(tmp_path / "r.npz").snr[1, 1] == 0

    @pytest.mark.parametrize("ending", ["h5", "npz", "nii.gz", "cfl"])
    @pytest.mark.parametrize("name", ["image", "sigma", "snr", "standard_error", "covariance"])
    def test_refused_before_writing(self, tmp_path: Path, ending: str, name: str) -> None:
        made = result()
        broken = getattr(made, name).clone()
        broken[..., 1, 1] = float("nan")
        with pytest.raises(ValueError, match=f"{name} contains .* NaN"):
            save(replace(made, **{name: broken}), tmp_path / f"r.{ending}")
        assert not os.listdir(tmp_path)

    def test_overflow_and_attributes(self, tmp_path: Path) -> None:
        large = result(image=result().image.to(torch.complex128) * 1e300)
        with pytest.raises(ValueError, match="image contains"):
            save(large, tmp_path / "r.h5")
        with pytest.raises(ValueError, match="passes is nan"):
            save(result(passes=float("nan")), tmp_path / "r.h5")
        assert not os.listdir(tmp_path)


class TestWriting:
    @pytest.mark.parametrize("name", ["r", "r.txt", "r.nii.bz2", ".h5", "r.png"])
    def test_unknown_endings(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InputError, match=r"must end in one of \.h5"):
            save(result(), tmp_path / name)
        assert not os.listdir(tmp_path)

    @pytest.mark.parametrize("ending", ["h5", "npz", "nii.gz", "cfl"])
    def test_no_folder(self, tmp_path: Path, ending: str) -> None:
        with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
            save(result(), tmp_path / "nowhere" / f"r.{ending}")

    def test_a_folder_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "r.h5").mkdir()
        with pytest.raises(InputError, match="this is a folder"):
            save(result(), tmp_path / "r.h5")

    def test_a_full_disk(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """The second of several files fails: none is left, and the former result survives."""
        save(result(), tmp_path / "r.cfl")
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        written = []

        def fail(header: Path, data: Path, values: np.ndarray) -> None:
            if len(written) == 1:
                data.write_bytes(b"half")
                raise OSError(28, "No space left on device")
            written.append(header)
            write_pair(header, data, values)

        monkeypatch.setattr("snrecon.io.cfl.write_pair", fail)
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
            save(result().scale(2.0), tmp_path / "r.cfl")
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before

    def test_a_failing_rename(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        rename = os.replace

        def fail(source: Path, target: Path) -> None:
            if "_snr" in str(target):
                raise PermissionError(13, "Permission denied")
            rename(source, target)

        monkeypatch.setattr("snrecon.io.staging.os.replace", fail)
        with pytest.raises(InputError, match="Permission denied"):
            save(result(), tmp_path / "r.nii.gz")
        assert not os.listdir(tmp_path)

    def test_an_interrupt_leaves_nothing(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("snrecon.io.results.np.savez_compressed", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(result(), tmp_path / "r.npz")
        assert not os.listdir(tmp_path)


@pytest.mark.parametrize("ending", ["h5", "npz", "nii.gz", "cfl"])
def test_images_alone(tmp_path: Path, ending: str) -> None:
    kspace = torch.from_numpy(files.kspace())
    scan = Scan(kspace, mask=torch.from_numpy(files.lines((12, 10))), geometry=OBLIQUE)
    image = torch.from_numpy(files.image((12, 10))).to(torch.complex64)
    path = tmp_path / f"x.{ending}"
    save_image(image, path, scan=scan, method="sense", metadata={"lambda": 0.1})
    if ending == "h5":
        with h5py.File(path) as file:
            np.testing.assert_array_equal(file["image"][()], image.numpy())
            assert file.attrs["method"] == "sense"
            assert file.attrs["acceleration"] == 2
            assert json.loads(file.attrs["details"]) == {"lambda": 0.1}
    elif ending == "npz":
        np.testing.assert_array_equal(np.load(path)["image"], image.numpy())
    elif ending == "cfl":
        np.testing.assert_array_equal(read_cfl(path).squeeze(), image.numpy().T)
    else:
        volume = nibabel.load(tmp_path / "x_image.nii.gz")
        np.testing.assert_allclose(volume.get_fdata(), image.abs().numpy().T, rtol=1e-6)
    if ending in ("h5", "npz"):
        with pytest.raises(InputError, match="'sigma' is missing"):
            load_result(path)
    with pytest.raises(ValueError, match="image contains"):
        save_image(image * float("nan"), tmp_path / f"y.{ending}")
    assert not [name for name in os.listdir(tmp_path) if name.startswith("y")]
