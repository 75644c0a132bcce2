"""Bad input of every format ends in one sentence that names the file."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import scan_files as files
from snrecon.errors import InputError
from snrecon.io import load, load_result, write_cfl
from snrecon.io.cfl import to_bart
from snrecon.io.limits import check_size, memory_limit

Writer = Callable[[Path, np.ndarray], Path]


def _npz(folder: Path, kspace: np.ndarray) -> Path:
    np.savez(folder / "scan.npz", kspace=kspace)
    return folder / "scan.npz"


def _npy(folder: Path, kspace: np.ndarray) -> Path:
    np.save(folder / "scan.npy", kspace)
    return folder / "scan.npy"


def _fastmri(folder: Path, kspace: np.ndarray) -> Path:
    return files.write_fastmri(folder / "scan.h5", kspace[None].swapaxes(-1, -2))


def _cfl(folder: Path, kspace: np.ndarray) -> Path:
    write_cfl(folder / "scan", to_bart(kspace, coils=True))
    return folder / "scan.cfl"


FORMATS = pytest.mark.parametrize("write", [_npz, _npy, _fastmri, _cfl])


def sentence(path: Path, **options: object) -> str:
    """The message of the refusal, which must be one line and name the file."""
    with pytest.raises(InputError) as caught:
        load(path, **options)  # type: ignore[arg-type]
    text = str(caught.value)
    assert path.stem in text
    assert "\n" not in text
    assert text.endswith(".")
    return text


@FORMATS
@pytest.mark.parametrize("value", [np.nan, np.inf, complex(0, -np.inf)])
def test_values_that_are_not_finite(tmp_path: Path, write: Writer, value: complex) -> None:
    kspace = files.kspace()
    kspace[1, 2, 3] = value
    assert "NaN or infinite" in sentence(write(tmp_path, kspace))


@FORMATS
def test_no_coils(tmp_path: Path, write: Writer) -> None:
    if write is _cfl:
        (tmp_path / "scan.hdr").write_text("# Dimensions\n10 12 1 0\n")
        (tmp_path / "scan.cfl").write_bytes(b"")
        assert "empty" in sentence(tmp_path / "scan.cfl")
    else:
        assert "no coils" in sentence(write(tmp_path, files.kspace()[:0]))


@FORMATS
def test_nothing_sampled(tmp_path: Path, write: Writer) -> None:
    assert "no samples" in sentence(write(tmp_path, 0 * files.kspace()))


@FORMATS
def test_truncated_anywhere(tmp_path: Path, write: Writer) -> None:
    path = write(tmp_path, files.kspace())
    whole = path.read_bytes()
    for size in (0, 1, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        sentence(path)


@FORMATS
def test_covariance_and_noise_that_do_not_fit(tmp_path: Path, write: Writer) -> None:
    path = write(tmp_path, files.kspace())
    assert "(4, 4)" in sentence(path, noise_covariance=np.eye(4))
    assert "positive definite" in sentence(path, noise_covariance=np.ones((3, 3)))


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.h5", "a.cfl", "a", "a.dat"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\x89PNG\r\n\x1a\n" + bytes(60), b"just a text\n", b"PK\x03\x04", b"\x93NUMPY",
     b"\x89HDF\r\n\x1a\n" + bytes(100), b"PK\x05\x06" + bytes(18), bytes(1000)],
)  # fmt: skip
def test_foreign_files(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    sentence(path)
    with pytest.raises(InputError, match=r"a[.:]"):
        load_result(path)


def test_missing_paths_and_folders(tmp_path: Path) -> None:
    assert "no such file" in sentence(tmp_path / "missing.npz")
    assert "no such file" in sentence(tmp_path / "missing.npz" / "below")
    assert "folder" in sentence(tmp_path)
    with pytest.raises(InputError, match=r"no such file|cannot be read"):
        load("nul\0byte.npz")
    with pytest.raises(InputError, match=r"cannot be read|no such file"):
        load("x" * 5000)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"mask": np.ones((10, 12))}, r"mask has shape \(10, 12\)"),
        ({"mask": np.zeros((12, 10))}, "no samples"),
        ({"mask": np.full((12, 10), np.nan)}, "'mask' contains NaN"),
        ({"maps": np.ones((2, 12, 10))}, r"coil maps of shape \(2, 12, 10\)"),
        ({"maps": np.full((3, 12, 10), np.inf)}, "'maps' contains NaN"),
        ({"noise": np.ones((2, 9), complex)}, r"noise scan has shape \(2, 9\)"),
        ({"noise": np.ones((3, 9), complex)}, "positive definite"),
        ({"noise": files.noise((3, 2))}, "2 samples for 3 coils"),
        ({"noise": files.noise((3, 9)).real}, "noise scan is not complex"),
        ({"noise": files.noise((3, 9)), "noise_dwell_ratio": -1}, "must be positive"),
        ({"noise": files.noise((3, 9)), "noise_dwell_ratio": "x"}, "single finite number"),
        ({"noise_covariance": np.eye(4)}, "for 4 coils, but the scan has 3"),
        ({"noise_covariance": np.ones((3, 3))}, "positive definite"),
        ({"noise_covariance": np.array([[1, 2], [0, 1]])}, "not Hermitian"),
        ({"noise_covariance": np.ones(3)}, r"\(coil, coil\) matrix"),
        ({"noise_covariance": np.eye(3), "noise_spectrum": np.ones(9)}, "9 entries"),
        ({"noise_covariance": np.eye(3), "noise_spectrum": -np.ones(10)}, "must be positive"),
        ({"layout": "pile"}, "'grid' or 'stack'"),
        ({"layout": 3}, "single string"),
        ({"layout": "stack"}, r"\(slice, coil, ky, kx\) is needed"),
        ({"kspace": np.ones((3, 12, 10))}, "must be complex"),
        ({"kspace": np.ones((12, 10), complex)}, r"\(coil, \[kz,\] ky, kx\) is needed"),
        ({"kspace": np.array(["text"])}, "must be complex"),
    ],
)
def test_entries_that_do_not_fit(tmp_path: Path, entries: dict[str, object], message: str) -> None:
    np.savez(tmp_path / "scan.npz", **{"kspace": files.kspace(), **entries})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=rf"scan\.npz.*{message}"):
        load(tmp_path / "scan.npz")


class Exploit:
    """Would leave a mark if it were unpickled."""

    loaded = False

    def __setstate__(self, state: object) -> None:
        Exploit.loaded = True


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    exploit = Exploit()
    exploit.__dict__["x"] = 1
    assert pickle.loads(pickle.dumps(exploit)) is not None
    assert Exploit.loaded
    Exploit.loaded = False
    array = np.array([exploit], dtype=object)
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    np.savez(tmp_path / "a.npz", kspace=array)
    np.savez(tmp_path / "b.npz", kspace=files.kspace(), mask=array)
    for name in ("a.npy", "a.npz", "b.npz"):
        assert "pickled" in sentence(tmp_path / name)
    assert not Exploit.loaded


class TestSizes:
    """What a header declares is compared with the file before memory is taken."""

    @staticmethod
    def npy(shape: str, data: bytes = b"") -> bytes:
        header = f"{{'descr': '<c8', 'fortran_order': False, 'shape': {shape}, }}".encode()
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data

    def test_npy_of_terabytes(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npy"
        for shape in ("(16, 100000, 100000)", "(1, 2, " + "9" * 30 + ")", "(-1, 2, 3)"):
            path.write_bytes(self.npy(shape, bytes(64)))
            assert "truncated or damaged" in sentence(path) or "header" in sentence(path)

    @pytest.mark.parametrize(
        "header",
        ["{}", "[1]", "__import__('os')", "(" * 5000, "{'descr': 'O'}", "{'descr': '<c8',"],
    )
    def test_npy_headers_of_all_kinds(self, tmp_path: Path, header: str) -> None:
        path = tmp_path / "a.npy"
        path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
        assert "damaged header" in sentence(path)

    def test_npz_that_declares_too_much(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("kspace.npy", self.npy("(16, 100000, 100000)", bytes(1000)))
        assert "truncated or damaged" in sentence(path)

    def test_zip_bomb(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Many zeros in a small file are refused without being unpacked."""
        monkeypatch.setattr("snrecon.io.limits.BOMB_BYTES", 2**20)
        path = tmp_path / "bomb.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("kspace.npy", self.npy("(4, 256, 1024)", bytes(2**23)))
        assert path.stat().st_size < 2**14
        assert "expands" in sentence(path)

    def test_other_compression(self, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        np.save(buffer, files.kspace())
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_LZMA) as archive:
            archive.writestr("kspace.npy", buffer.getvalue())
        assert "compressed in a way" in sentence(tmp_path / "a.npz")

    def test_hdf5_with_nothing_behind_it(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset(
                "kspace", (1000, 100, 1000, 1000), np.complex64, chunks=(1, 1, 100, 100)
            )
        assert "GiB" in sentence(tmp_path / "a.h5")
        with h5py.File(tmp_path / "b.h5", "w") as file:
            file.create_dataset("kspace", (10, 4, 1000, 1000), np.complex64, chunks=(1, 1, 9, 9))
        assert "expands" in sentence(tmp_path / "b.h5")
        with h5py.File(tmp_path / "c.h5", "w") as file:
            file.create_dataset("kspace", (1, 4, 10, 10), np.complex64, chunks=(1, 1, 9, 9))
        assert "no data" in sentence(tmp_path / "c.h5")

    def test_hdf5_that_points_elsewhere(self, tmp_path: Path) -> None:
        secret = tmp_path / "secret.bin"
        secret.write_bytes(bytes(range(200)) * 10)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("kspace", (1, 2, 8, 8), "c8", external=[(str(secret), 0, 1024)])
        assert "other files" in sentence(tmp_path / "a.h5")

    def test_hdf5_texts_that_claim_gigabytes(self, tmp_path: Path) -> None:
        kspace = files.kspace()[None]
        path = files.write_fastmri(tmp_path / "a.h5", kspace, attributes={"patient_id": "none"})
        whole = bytearray(path.read_bytes())
        value = whole.index(b"patient_id\x00") + 16 + 24 + 8
        assert int.from_bytes(whole[value : value + 4], "little") == 4  # length of "none"
        whole[value : value + 4] = b"\xf0\xff\xff\xff"
        path.write_bytes(whole)
        assert "text 'patient_id' is broken" in sentence(path)

    def test_hdf5_heap_that_leads_nowhere(self, tmp_path: Path) -> None:
        """The library would walk over the heap for ever."""
        kspace = files.kspace()[None]
        path = files.write_fastmri(tmp_path / "a.h5", kspace, attributes={"patient_id": "none"})
        whole = bytearray(path.read_bytes())
        heap = whole.index(b"GCOL")
        whole[heap + 16 : heap + 40] = bytes(24)
        path.write_bytes(whole)
        assert "heap" in sentence(path)

    def test_limits(self) -> None:
        check_size(2**20, 1, "small")
        check_size(2**30, 2**26, "compressed")
        with pytest.raises(InputError, match="more than half of this machine's memory"):
            check_size(memory_limit() + 1, memory_limit(), "large")
