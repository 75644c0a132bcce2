"""Reading readouts by their place in the file: as the ISMRMRD and HDF5 libraries read them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

ismrmrd = pytest.importorskip("ismrmrd")

import mrd_files as mrd  # noqa: E402
from snrecon.errors import InputError  # noqa: E402
from snrecon.io.mrd import load_mrd  # noqa: E402
from snrecon.io.mrd_readouts import Readouts, read_xml  # noqa: E402

NY, NX, COILS = 8, 6, 2
HEAD = mrd.header((2 * NX, NY, 1))


def readouts() -> list[Any]:
    rng = np.random.default_rng(0)
    shape = (COILS, NY, 2 * NX)
    return mrd.lines(rng.standard_normal(shape) + 1j * rng.standard_normal(shape))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return mrd.write(tmp_path / "scan.h5", HEAD, readouts())


def store_again(source: Path, target: Path, **options: Any) -> Path:
    """The same content with another layout of the readouts, and the XML header as given."""
    text = options.pop("text", None)
    with h5py.File(source) as old, h5py.File(target, "w") as new:
        data = old["dataset/data"]
        group = new.create_group("dataset")
        copy = group.create_dataset("data", data.shape, dtype=data.dtype, **options)
        copy[:] = data[:]
        if text is None:
            old.copy("dataset/xml", group)
        else:
            group["xml"] = text(old["dataset/xml"][0])
    return target


def test_same_values_as_the_library(path: Path) -> None:
    with h5py.File(path) as file, ismrmrd.Dataset(str(path), mode="r") as dataset:
        group = file["dataset"]
        found = Readouts(group, str(path), ismrmrd)
        assert read_xml(group, str(path)).encode() == dataset.read_xml_header()
        assert found.count == dataset.number_of_acquisitions()
        for row in range(found.count):
            wanted = dataset.read_acquisition(row)
            assert np.array_equal(found.samples_of(row), wanted.data)
            assert found.counters["kspace_encode_step_1"][row] == wanted.idx.kspace_encode_step_1
            assert tuple(found.vectors["position"][row]) == tuple(wanted.position)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (3,)},
        {"chunks": (16,), "maxshape": (None,)},
        {"chunks": (4,), "compression": "gzip"},
        {"chunks": (3,), "compression": "gzip", "shuffle": True, "fletcher32": True},
        {"text": np.bytes_},
        {"text": lambda t: t.decode()},
    ],
)
def test_every_layout(tmp_path: Path, path: Path, options: dict[str, Any]) -> None:
    other = store_again(path, tmp_path / "other.h5", **options)
    assert torch.equal(load_mrd(other).kspace, load_mrd(path).kspace)


def test_unknown_compression_is_refused(tmp_path: Path, path: Path) -> None:
    other = store_again(path, tmp_path / "other.h5", chunks=(4,), compression="lzf")
    with pytest.raises(InputError, match="compressed in a way that cannot be read"):
        load_mrd(other)


def test_damaged_compression_is_refused(tmp_path: Path, path: Path) -> None:
    other = store_again(path, tmp_path / "other.h5", chunks=(4,), compression="gzip")
    pieces: list[Any] = []
    with h5py.File(other) as file:
        file["dataset/data"].id.chunk_iter(pieces.append)
    content = bytearray(other.read_bytes())
    content[pieces[0].byte_offset + 1] ^= 0xFF
    other.write_bytes(content)
    with pytest.raises(InputError, match=r"other\.h5: .* is compressed and damaged"):
        load_mrd(other)


@pytest.mark.parametrize(
    ("part", "value"), [(0, 0xFFFFFFFF), (0, 0), (4, 8), (4, 2**63), (12, 60000)]
)
def test_damaged_reference_takes_no_memory(path: Path, part: int, value: int) -> None:
    """Length, address or index of the samples of readout 5 is wrong."""
    pieces: list[Any] = []
    with h5py.File(path) as file:
        file["dataset/data"].id.chunk_iter(pieces.append)
        start = file["dataset/data"].dtype.fields["data"][1]
    width = {0: 4, 4: 8, 12: 4}[part]
    content = bytearray(path.read_bytes())
    place = pieces[5].byte_offset + start + part
    content[place : place + width] = value.to_bytes(width, "little")
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"scan\.h5: readout 5 (holds|is not where)"):
        load_mrd(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24
