"""fastMRI files: axes, oversampling, masks, padding, header, single slices."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import scan_files as files
from snrecon.errors import InputError, SnreconWarning
from snrecon.io import detect, load
from snrecon.io.fastmri import remove_oversampling
from snrecon.physics.fourier import ifft

READOUT, WIDTH = 16, 10  # height and width of the file's arrays


def stack(coils: int = 3, slices: int = 2, readout: int = READOUT) -> np.ndarray:
    """As fastMRI stores it: (slice, coil, height = readout, width = phase encoding)."""
    one = files.kspace(coils, (readout, WIDTH), sd=0.01)
    return np.stack([one * (1 + s) for s in range(slices)])


def test_multi_coil_stack_with_readout_last(tmp_path: Path) -> None:
    data = stack()
    path = files.write_fastmri(
        tmp_path / "f.h5", data, attributes={"max": 2.5, "acquisition": "AXT2", "norm": 1.0}
    )
    assert detect(path) == "fastmri"
    scan = load(path, noise_covariance="identity")
    assert (scan.layout, scan.slices, scan.coils, scan.grid) == ("stack", 2, 3, (WIDTH, READOUT))
    np.testing.assert_array_equal(scan.kspace.numpy(), data.swapaxes(-1, -2))
    assert scan.attributes["max"] == 2.5
    assert scan.attributes["acquisition"] == "AXT2"
    assert scan.geometry is None
    assert bool(scan.sampled.all())


@pytest.mark.parametrize(
    ("shape", "empty"),
    [((2, 0, 16, 10), "coils"), ((2, 3, 0, 10), "samples"), ((2, 16, 0), "samples")],
)
def test_what_is_empty_is_named(tmp_path: Path, shape: tuple[int, ...], empty: str) -> None:
    path = files.write_fastmri(tmp_path / "empty.h5", np.zeros(shape, "c8"))
    with pytest.raises(InputError, match=rf"empty\.h5: k-space of shape .* has no {empty}\.$"):
        load(path)


def test_single_coil(tmp_path: Path) -> None:
    data = stack(coils=1)[:, 0]
    path = files.write_fastmri(tmp_path / "single.h5", data)
    scan = load(path, noise_covariance="identity")
    assert (scan.slices, scan.coils, scan.grid) == (2, 1, (WIDTH, READOUT))
    np.testing.assert_array_equal(scan.kspace[:, 0].numpy(), data.swapaxes(-1, -2))


def test_test_files_with_a_mask_and_padding(tmp_path: Path) -> None:
    mask = np.array([1, 1, 0, 1, 1, 1, 0, 1, 0, 1], dtype=np.float32)
    data = stack()
    data[..., [0, 9]] = 0  # zero padding, which the file's mask does not know
    path = files.write_fastmri(tmp_path / "t.h5", data * mask, mask=mask)
    scan = load(path, noise_covariance="identity")
    lines = mask.astype(bool)
    lines[[0, 9]] = False
    assert torch.equal(scan.sampled, torch.from_numpy(lines)[:, None].expand(WIDTH, READOUT))
    files.write_fastmri(tmp_path / "wrong.h5", data, mask=mask[:-1])
    with pytest.raises(InputError, match=r"wrong\.h5: the mask has 9 entries.*10"):
        load(tmp_path / "wrong.h5")
    files.write_fastmri(tmp_path / "none.h5", data, mask=0 * mask)
    with pytest.raises(InputError, match=r"none\.h5: the mask has no samples"):
        load(tmp_path / "none.h5")


def test_readout_oversampling_is_removed(tmp_path: Path) -> None:
    data = stack()
    path = files.write_fastmri(tmp_path / "f.h5", data, xml=files.header(READOUT, WIDTH, 2))
    scan = load(path, noise_covariance="identity")
    assert scan.grid == (WIDTH, READOUT // 2)
    images = files.centred_ifft(data.astype(complex), (-2, -1)).swapaxes(-1, -2)
    found = ifft(scan.kspace, (-2, -1)).numpy()
    np.testing.assert_allclose(found, images[..., READOUT // 4 : 3 * READOUT // 4], atol=2e-3)
    assert "16 to 8" in scan.attributes["readout_oversampling_removed"]
    assert scan.attributes["field_strength"] == 2.89
    assert scan.attributes["flip_angle"] == pytest.approx(np.pi / 2)
    assert scan.geometry is not None
    assert scan.geometry.voxel_size == pytest.approx((5e-3, 2e-3, 1e-3))


@pytest.mark.parametrize(("points", "kept"), [(16, 8), (15, 8), (16, 7), (15, 7)])
def test_cropping_keeps_the_centre_and_white_noise(points: int, kept: int) -> None:
    flat = torch.zeros(1, points, dtype=torch.complex128)
    flat[0] = 1  # all of the image at its centre
    centre = ifft(remove_oversampling(flat, kept), (-1,))[0]
    assert int(centre.abs().argmax()) == kept // 2
    eye = torch.eye(points, dtype=torch.complex128)
    crop = remove_oversampling(eye, kept).T  # (kept, points)
    torch.testing.assert_close(crop @ crop.mH, torch.eye(kept, dtype=torch.complex128))


def test_partial_echo_keeps_its_oversampling(tmp_path: Path) -> None:
    data = stack()
    data[..., :5, :] = 0
    path = files.write_fastmri(tmp_path / "f.h5", data, xml=files.header(READOUT, WIDTH, 2))
    scan = load(path, noise_covariance="identity")
    assert scan.grid == (WIDTH, READOUT)
    assert not scan.sampled[:, :5].any()
    assert bool(scan.sampled[:, 5:].all())
    assert "partial" in scan.attributes["readout_oversampling_removed"]


def test_one_slice_is_the_slice_of_the_stack(tmp_path: Path) -> None:
    path = files.write_fastmri(
        tmp_path / "f.h5", stack(slices=3), xml=files.header(READOUT, WIDTH, 2)
    )
    whole = load(path, noise_covariance="identity")
    for index in (0, 2, -1):
        one, same = load(path, slice=index, noise_covariance="identity"), whole.slice(index)
        assert torch.equal(one.kspace, same.kspace)
        assert torch.equal(one.sampled, same.sampled)
        assert one.geometry is not None
        assert same.geometry is not None
        assert one.geometry.position == pytest.approx(same.geometry.position)
    with pytest.raises(InputError, match="there is no slice 3; the scan has 3"):
        load(path, slice=3)
    maps = torch.rand(whole.kspace.shape) + 0j
    one = load(path, slice=2, maps=maps, noise_covariance="identity")
    assert torch.equal(one.maps, maps[2])  # type: ignore[arg-type]


def test_broken_headers(tmp_path: Path) -> None:
    path = files.write_fastmri(tmp_path / "f.h5", stack(), xml="<ismrmrdHeader><encoding>")
    with pytest.warns(SnreconWarning, match=r"f\.h5: .* not valid XML"):
        scan = load(path, noise_covariance="identity")
    assert scan.grid == (WIDTH, READOUT)
    bomb = (
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]><ismrmrdHeader>&a;</ismrmrdHeader>'
    )
    path = files.write_fastmri(tmp_path / "g.h5", stack(), xml=bomb)
    with pytest.warns(SnreconWarning, match="defines entities"):
        load(path, noise_covariance="identity")


def test_what_is_not_fastmri(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["volume"] = np.zeros((2, 3, 4))
    with pytest.raises(InputError, match=r"other\.h5: .*neither fastMRI.*volume"):
        load(tmp_path / "other.h5")
    files.write_fastmri(tmp_path / "real.h5", np.zeros((2, 3, 4, 5), dtype=np.float32))
    with pytest.raises(InputError, match=r"real\.h5: 'kspace' is float32.*complex"):
        load(tmp_path / "real.h5")
    files.write_fastmri(tmp_path / "flat.h5", np.zeros((4, 5), dtype=np.complex64))
    with pytest.raises(InputError, match=r"flat\.h5: 'kspace' has shape \(4, 5\)"):
        load(tmp_path / "flat.h5")
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["kspace"] = h5py.ExternalLink(str(tmp_path / "real.h5"), "/kspace")
    with pytest.raises(InputError):
        load(tmp_path / "link.h5")
