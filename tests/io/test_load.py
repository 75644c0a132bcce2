"""Loading NumPy files, and what ``load`` decides for every format: noise, maps, masks, slices."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import scan_files as files
from snrecon.errors import InputError, SnreconWarning
from snrecon.io import detect, load
from snrecon.physics.fourier import ifft
from snrecon.physics.masks import make_mask
from snrecon.recon.tv import TotalVariation
from snrecon.report import describe_scan

COVARIANCE = np.array([[2, 0.3j, 0], [-0.3j, 1, 0.1], [0, 0.1, 3]], dtype=np.complex64)


def write(path: Path, **entries: object) -> Path:
    np.savez(path, **entries)  # type: ignore[arg-type]
    return path


def test_axes_order_of_an_asymmetric_object(tmp_path: Path) -> None:
    scan = load(write(tmp_path / "a.npz", kspace=files.kspace()), noise_covariance="identity")
    assert scan.grid == (12, 10)
    assert scan.coils == 3
    found = ifft(scan.kspace, (-2, -1)).numpy()
    np.testing.assert_allclose(
        found, files.coil_maps(3, (12, 10)) * files.image((12, 10)), atol=2e-3
    )


def test_every_entry_of_an_npz(tmp_path: Path) -> None:
    mask, maps = files.lines((12, 10)), files.coil_maps(3, (12, 10))
    kspace = files.kspace()
    spectrum = np.linspace(0.5, 1.5, 10)
    path = write(
        tmp_path / "scan.bin.npz",
        kspace=kspace,
        mask=mask.astype(np.uint8),
        maps=maps,
        noise_covariance=COVARIANCE,
        noise_spectrum=spectrum,
        noise=files.noise((3, 50)),
        noise_dwell_ratio=0.5,
    )
    scan = load(path)
    assert torch.equal(scan.sampled, torch.from_numpy(mask))
    np.testing.assert_array_equal(scan.kspace.numpy(), kspace * mask)
    np.testing.assert_allclose(scan.maps.numpy(), maps, rtol=1e-6)  # type: ignore[union-attr]
    model = scan.require_noise()
    np.testing.assert_allclose(model.covariance.numpy(), COVARIANCE)
    assert model.spectrum is not None
    np.testing.assert_allclose(model.spectrum.numpy(), spectrum, rtol=1e-6)
    assert scan.source == str(path)
    assert scan.acceleration == 2


@pytest.mark.parametrize("name", ["scan.npz", "scan.h5", "scan"])
def test_the_ending_does_not_matter(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with path.open("wb") as stream:
        np.savez_compressed(stream, kspace=files.kspace())
    assert detect(path) == "npz"
    assert load(path, noise_covariance="identity").coils == 3


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<c8", ">c8", "<c16", ">c16"])
def test_npy_in_every_byte_and_memory_order(tmp_path: Path, dtype: str, order: str) -> None:
    kspace = np.asarray(files.kspace(), dtype=dtype, order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "k.npy", kspace)
    scan = load(tmp_path / "k.npy", noise_covariance="identity")
    assert scan.kspace.dtype == (torch.complex64 if "c8" in dtype else torch.complex128)
    assert scan.require_noise().covariance.dtype == scan.kspace.dtype
    np.testing.assert_array_equal(scan.kspace.numpy(), kspace)


def test_volume_and_stack(tmp_path: Path) -> None:
    data = np.stack([files.kspace(3, (12, 10), sd=s) for s in (0.1, 0.2, 0.3, 0.4)])
    volume = load(write(tmp_path / "v.npz", kspace=data), noise_covariance=np.eye(4))
    assert (volume.layout, volume.coils, volume.grid) == ("grid", 4, (3, 12, 10))
    path = write(tmp_path / "s.npz", kspace=data, layout="stack")
    stack = load(path, noise_covariance="identity")
    assert (stack.layout, stack.slices, stack.coils, stack.grid) == ("stack", 4, 3, (12, 10))
    one = load(path, slice=-2, noise_covariance="identity")
    assert one.layout == "grid"
    np.testing.assert_array_equal(one.kspace.numpy(), data[2])
    for index in (4, -5):
        with pytest.raises(InputError, match=rf"s\.npz: there is no slice {index}; .* 4 \(0 to 3"):
            load(path, slice=index)


def test_other_arrays_by_key(tmp_path: Path) -> None:
    path = write(
        tmp_path / "several.npz",
        head=files.kspace(3, (12, 10)),
        body=files.kspace(2, (8, 6)),
        noise_covariance=COVARIANCE,
    )
    assert load(path, key="head").require_noise().source == "file"
    with pytest.warns(SnreconWarning, match="'noise_covariance' does not fit 'body'"):
        assert load(path, key="body").grid == (8, 6)
    with pytest.raises(InputError, match=r"several\.npz: .*'kspace'.*--key.*body, head"):
        load(path)
    with pytest.raises(InputError, match="there is no array 'neck'; it has body, head"):
        load(path, key="neck")


def test_the_only_complex_array_needs_no_key(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", data=files.kspace(), note=np.zeros((3, 4, 5)))
    assert load(path, noise_covariance="identity").attributes["array"] == "data"


class TestNoise:
    """The order of sources: option, covariance of the file, noise scan, background, nothing."""

    @staticmethod
    def background_scan(**entries: object) -> dict[str, object]:
        shape = (64, 48)
        image = np.zeros(shape)
        image[26:38, 20:30] = 200  # much background around a small object
        lower = np.linalg.cholesky(COVARIANCE.astype(complex))
        noise = np.einsum("ab,bij->aij", lower, files.noise((3, *shape), seed=3))
        kspace = files.centred_fft(files.coil_maps(3, shape) * image, (1, 2)) + noise
        return {"kspace": kspace.astype(np.complex64), **entries}

    def test_option_goes_first(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.npz", kspace=files.kspace(), noise_covariance=np.eye(3) * -1)
        assert load(path, noise_covariance="identity").require_noise().source == "identity"
        given = load(path, noise_covariance=torch.from_numpy(COVARIANCE)).require_noise()
        np.testing.assert_allclose(given.covariance.numpy(), COVARIANCE)
        with pytest.raises(InputError, match=r"a\.npz.*not positive definite"):
            load(path)

    @pytest.mark.parametrize("ending", ["npy", "npz", "cfl"])
    def test_option_from_a_file(self, tmp_path: Path, ending: str) -> None:
        from snrecon.io import write_cfl

        path = write(tmp_path / "a.npz", kspace=files.kspace())
        option = tmp_path / f"psi.{ending}"
        if ending == "npy":
            np.save(option, COVARIANCE)
        elif ending == "npz":
            np.savez(option, whatever=COVARIANCE)
        else:
            write_cfl(option, COVARIANCE)
        model = load(path, noise_covariance=option).require_noise()
        np.testing.assert_allclose(model.covariance.numpy(), COVARIANCE)

    def test_noise_scan(self, tmp_path: Path) -> None:
        samples = files.noise((3, 40)) * np.array([[1], [2], [3]])
        path = write(
            tmp_path / "a.npz",
            kspace=files.kspace(),
            noise=samples,
            noise_dwell_ratio=0.25,
            noise_spectrum=np.r_[np.ones(5), np.full(5, 3.0)],
        )
        model = load(path).require_noise()
        assert model.source == "noise scan"
        np.testing.assert_allclose(
            model.covariance.numpy(), samples @ samples.conj().T / 40 * 0.25, rtol=1e-5
        )
        assert model.spectrum is not None
        np.testing.assert_allclose(model.spectrum.numpy(), np.r_[np.full(5, 0.5), np.full(5, 1.5)])

    def test_background_with_a_warning_and_before_undersampling(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.npz", **self.background_scan())
        with pytest.warns(SnreconWarning, match=r"a\.npz.*background.*64 x 48.*wrong several-fold"):
            full = load(path)
        np.testing.assert_allclose(full.require_noise().covariance.numpy(), COVARIANCE, atol=0.2)
        with pytest.warns(SnreconWarning):
            reduced = load(path, undersample={"kind": "regular", "acceleration": 2})
        assert torch.equal(reduced.require_noise().covariance, full.require_noise().covariance)

    def test_nothing_is_known(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.npz", kspace=files.kspace(), mask=files.lines((12, 10)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scan = load(path)
        assert scan.noise is None
        with pytest.raises(InputError, match=r"a\.npz.*--noise-covariance"):
            scan.require_noise()

    @pytest.mark.parametrize("kept", [slice(0, None, 2), [0, 1, 2, 3, 4, 8, 9, 10, 11]])
    def test_an_undersampled_scan_says_so(self, tmp_path: Path, kept: object) -> None:
        mask = np.zeros((12, 10), bool)
        mask[kept] = True  # with the centre of k-space, and without
        scan = load(write(tmp_path / "a.npz", kspace=files.kspace() * mask, mask=mask))
        reason = r"a\.npz.* not known, because .*undersampled.* lies there; give its covariance"
        with pytest.raises(InputError, match=reason):
            scan.require_noise()

    def test_a_dead_coil_is_named(self, tmp_path: Path) -> None:
        entries = self.background_scan()
        entries["kspace"][1] = 0  # type: ignore[index]
        path = write(tmp_path / "a.npz", **entries)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scan = load(path, undersample={"kind": "regular", "acceleration": 2})
        assert scan.noise is None
        reason = r"a\.npz.*coil 1 shows no noise.*may be dead"
        with pytest.raises(InputError, match=reason) as caught:
            scan.require_noise()
        assert str(caught.value).count("--noise-covariance") == 1
        shown = [line for line in describe_scan(scan).splitlines() if line.startswith("noise")]
        assert len(shown) == 1
        assert "not known, because coil 1 shows no noise" in shown[0]
        assert "--noise-covariance" in shown[0]
        with pytest.raises(InputError, match="coil 1 shows no noise"):
            TotalVariation()(replace(scan, maps=torch.ones_like(scan.kspace)))

    def test_no_background_still_loads(self, tmp_path: Path) -> None:
        full = np.ones((2, 6, 6)) * files.coil_maps(2, (6, 6))  # the object fills the field of view
        path = write(tmp_path / "a.npz", kspace=files.centred_fft(full, (1, 2)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scan = load(path)
        assert scan.noise is None
        assert "no background free of signal" in scan.noise_unknown

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            (np.eye(2), r"given noise covariance has shape \(2, 2\).*\(3, 3\)"),
            (np.diag([1.0, 1.0, -1.0]), "given noise covariance: .*not positive definite"),
            (np.diag([1.0, np.nan, 1.0]), "NaN or infinite"),
            ("missing.npy", r"missing\.npy: there is no such file"),
        ],
    )
    def test_bad_option(self, tmp_path: Path, option: object, message: str) -> None:
        path = write(tmp_path / "a.npz", kspace=files.kspace())
        with pytest.raises(InputError, match=message):
            load(path, noise_covariance=option)  # type: ignore[arg-type]


class TestMaps:
    @pytest.mark.parametrize("ending", ["npz", "npy", "cfl", "tensor"])
    def test_from_everywhere(self, tmp_path: Path, ending: str) -> None:
        from snrecon.io import write_cfl

        maps = files.coil_maps(3, (12, 10)).astype(np.complex64)
        option: object = tmp_path / f"maps.{ending}"
        if ending == "npz":
            write(tmp_path / "maps.npz", maps=maps, other=np.zeros(2))
        elif ending == "npy":
            np.save(tmp_path / "maps.npy", maps)
        elif ending == "cfl":
            write_cfl(tmp_path / "maps", maps.transpose(2, 1, 0)[:, :, None])
        else:
            option = torch.from_numpy(maps)
        path = write(tmp_path / "a.npz", kspace=files.kspace(), maps=0 * maps)
        scan = load(path, maps=option, noise_covariance="identity")  # type: ignore[arg-type]
        np.testing.assert_array_equal(scan.maps.numpy(), maps)  # type: ignore[union-attr]

    def test_of_a_stack_follow_the_slice(self, tmp_path: Path) -> None:
        data = np.stack([files.kspace(), 2 * files.kspace()])
        maps = np.stack([files.coil_maps(3, (12, 10)), 3 * files.coil_maps(3, (12, 10))])
        path = write(tmp_path / "a.npz", kspace=data, layout="stack")
        option = {"noise_covariance": "identity"}
        whole = load(path, slice=1, maps=maps, **option)  # type: ignore[arg-type]
        single = load(path, slice=1, maps=maps[1], **option)  # type: ignore[arg-type]
        for scan in (whole, single):
            np.testing.assert_allclose(scan.maps.numpy(), maps[1], rtol=1e-6)  # type: ignore[union-attr]
        with pytest.raises(InputError, match="maps for 3 slices, but the scan has 2"):
            load(path, slice=1, maps=np.concatenate([maps, maps[:1]]))

    def test_bad_maps(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.npz", kspace=files.kspace())
        with pytest.raises(InputError, match=r"coil maps of shape \(3, 10, 12\)"):
            load(path, maps=files.coil_maps(3, (10, 12)))
        with pytest.raises(InputError, match="maps contains NaN"):
            load(path, maps=np.full((3, 12, 10), np.nan))
        (tmp_path / "maps.txt").write_text("no maps")
        with pytest.raises(InputError, match=r"maps\.txt: maps must come from"):
            load(path, maps=tmp_path / "maps.txt")


class TestUndersampling:
    def test_by_dictionary_mask_and_tensor(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.npz", kspace=files.kspace(), noise_covariance=COVARIANCE)
        mask = make_mask("random", (12, 10), 2, calibration=2, seed=5)
        wanted = {"kind": "random", "acceleration": 2, "calibration": 2, "seed": 5}
        by_name = load(path, undersample=wanted)
        assert torch.equal(by_name.sampled, mask.tensor)
        assert torch.equal(load(path, undersample=mask).sampled, mask.tensor)
        assert torch.equal(load(path, undersample=mask.tensor).sampled, mask.tensor)
        facts = by_name.attributes["undersampling"]
        assert facts["kind"] == "random"
        assert facts["nominal_acceleration"] == 2
        assert facts["achieved_acceleration"] == pytest.approx(by_name.acceleration)
        assert not by_name.kspace[:, ~mask.tensor].any()

    def test_what_is_undersampled_already_is_said(self, tmp_path: Path) -> None:
        part = np.where(np.arange(12)[:, None] % 2 == 0, files.kspace(), 0)
        path = write(tmp_path / "a.npz", kspace=part, noise_covariance=COVARIANCE)
        wanted = {"kind": "random", "acceleration": 2, "calibration": 2, "seed": 5}
        with pytest.warns(SnreconWarning, match=r"undersampled already \(acceleration 2\.00\)"):
            scan = load(path, undersample=wanted)
        assert scan.acceleration > 2
        with warnings.catch_warnings():
            warnings.simplefilter("error", SnreconWarning)
            load(write(tmp_path / "b.npz", kspace=files.kspace(), noise_covariance=COVARIANCE),
                 undersample=wanted)

    @pytest.mark.parametrize(
        "wanted",
        [
            {"kind": "random"},
            {"acceleration": 4},
            {"kind": "random", "acceleration": 4, "sed": 1},
            {"kind": "nonsense", "acceleration": 4},
            {"kind": "random", "acceleration": -1},
            {"kind": "random", "acceleration": float("nan")},
            torch.zeros(12, 10, dtype=torch.bool),
            torch.ones(10, 12, dtype=torch.bool),
        ],
    )
    def test_bad_requests(self, tmp_path: Path, wanted: object) -> None:
        path = write(tmp_path / "a.npz", kspace=files.kspace(), noise_covariance=COVARIANCE)
        with pytest.raises(InputError):
            load(path, undersample=wanted)  # type: ignore[arg-type]


@pytest.mark.real_data
def test_real_scans(real_data: Path) -> None:
    with pytest.warns(SnreconWarning, match="background"):
        head = load(real_data / "pulseq_brain16/kspace.npz", key="brain_head16")
    assert (head.coils, head.grid) == (16, (128, 128))
    assert head.require_noise().source == "background"
    phantom = load(real_data / "cloudmr_phantom16_noise/kspace.npz")
    assert phantom.require_noise().source == "noise scan"
    undersampled = load(real_data / "sigpy_brain8_undersampled/cartesian_ksp.npy")
    assert undersampled.acceleration == pytest.approx(8.04, abs=0.01)
    assert undersampled.noise is None
