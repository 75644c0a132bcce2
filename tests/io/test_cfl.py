"""BART's format, against arrays that BART itself wrote (``bart/make.sh``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import scan_files as files
from snrecon.errors import InputError
from snrecon.io import detect, load, read_cfl, write_cfl
from snrecon.io.cfl import from_bart, to_bart
from snrecon.physics.fourier import ifft

BART = Path(__file__).parent / "bart"


def test_axes_and_transform_of_bart() -> None:
    image = read_cfl(BART / "image").squeeze()
    np.testing.assert_array_equal(image, np.arange(1, 25).reshape(4, 6).T)  # column-major
    scan = load(BART / "kspace", noise_covariance="identity")
    assert (scan.coils, scan.grid) == (1, (4, 6))
    found = ifft(scan.kspace, (-2, -1))[0].numpy()
    np.testing.assert_allclose(found, image.T, atol=2e-5)


def test_slices_of_bart() -> None:
    scan = load(BART / "stack.cfl", noise_covariance="identity")
    assert (scan.layout, scan.slices, scan.coils, scan.grid) == ("stack", 2, 3, (4, 6))
    # Counted through with the readout fastest, then phase encoding, coil, slice.
    np.testing.assert_array_equal(scan.kspace.real.numpy(), np.arange(1, 145).reshape(2, 3, 4, 6))


@pytest.mark.parametrize("name", ["k", "k.cfl", "k.hdr", "with.dots"])
@pytest.mark.parametrize("shape", [(3, 12, 10), (3, 4, 12, 10)])
def test_round_trip_of_scans(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    kspace = files.kspace(3, shape[1:])
    write_cfl(tmp_path / name, to_bart(kspace, coils=True))
    assert detect(tmp_path / name) == "cfl"
    scan = load(tmp_path / name, noise_covariance="identity")
    np.testing.assert_array_equal(scan.kspace.numpy(), kspace)


def test_round_trip_of_stacks_and_images() -> None:
    data = np.stack([files.kspace(), 2 * files.kspace()])
    back, layout = from_bart(to_bart(data, coils=True, layout="stack"), "x")
    assert layout == "stack"
    np.testing.assert_array_equal(back, data)
    assert to_bart(data[:, 0], coils=False, layout="stack").shape == (10, 12, *(1,) * 11, 2)
    assert to_bart(torch.from_numpy(data[0, 0]), coils=False).shape == (10, 12, 1, 1)


def test_write_with_dimensions(tmp_path: Path) -> None:
    write_cfl(tmp_path / "a", np.arange(6.0), dims=(2, 1, 3))
    found = read_cfl(tmp_path / "a")
    assert found.shape == (2, 1, 3, *(1,) * 13)
    np.testing.assert_array_equal(found.squeeze(), [[0, 2, 4], [1, 3, 5]])
    with pytest.raises(InputError, match="6 values cannot have the dimensions"):
        write_cfl(tmp_path / "b", np.arange(6.0), dims=(4,))
    with pytest.raises(InputError, match="cannot be written"):
        write_cfl(tmp_path / "no" / "b", np.arange(6.0))


def test_axes_that_are_not_read(tmp_path: Path) -> None:
    write_cfl(tmp_path / "maps", np.ones((4, 4, 1, 2, 2)))
    with pytest.raises(InputError, match=r"several sets of coil maps.*bart slice 4 0"):
        load(tmp_path / "maps")
    write_cfl(tmp_path / "time", np.ones((4, 4, *(1,) * 8, 2)))
    with pytest.raises(InputError, match=r"axes \[10\] are longer"):
        load(tmp_path / "time")
    write_cfl(tmp_path / "both", np.ones((4, 4, 2, *(1,) * 10, 2)))
    with pytest.raises(InputError, match=r"slices .* of a 3D grid"):
        load(tmp_path / "both")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("# Dimensions\n4 4 1 99999999999\n", "declares .* truncated or belongs"),
        ("# Dimensions\n4 4 1 3\n", "declares 384 bytes but the file has 256"),
        ("# Dimensions\n4 4 -1 -2\n", "no valid line of dimensions"),
        ("# Dimensions\n4 four\n", "no valid line of dimensions"),
        ("# Dimensions\n" + "1" * 4000, "no valid line of dimensions"),
        ("# Dimensions\n", "no valid line of dimensions"),
        ("# Dimensions\n4 4 1 2" + " 1" * 20, "no valid line of dimensions"),
        ("nothing", "no valid line of dimensions"),
    ],
)
def test_bad_headers(tmp_path: Path, header: str, message: str) -> None:
    np.ones(32, dtype=np.complex64).tofile(tmp_path / "a.cfl")
    (tmp_path / "a.hdr").write_text(header)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "a.cfl")


def test_a_missing_half(tmp_path: Path) -> None:
    np.ones(32, dtype=np.complex64).tofile(tmp_path / "a.cfl")
    with pytest.raises(InputError, match=r"a\.cfl: the header a\.hdr of a\.cfl is missing"):
        load(tmp_path / "a.cfl")
    (tmp_path / "b.hdr").write_text("# Dimensions\n4 4 1 2\n")
    with pytest.raises(InputError, match=r"b\.hdr: the data b\.cfl of b\.hdr are missing"):
        load(tmp_path / "b.hdr")
    with pytest.raises(InputError, match=r"a\.cfl: the header a\.hdr of a\.cfl is missing"):
        load(BART / "kspace", maps=tmp_path / "a.cfl")
    with pytest.raises(InputError, match=r"cannot be read|no such file"):
        read_cfl("x" * 5000)
