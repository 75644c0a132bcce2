"""Bad ISMRMRD files: one sentence that names the file, whatever is wrong."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

ismrmrd = pytest.importorskip("ismrmrd")

import mrd_files as mrd  # noqa: E402
from fuzzing import Job, assert_survived  # noqa: E402
from snrecon.data import Scan  # noqa: E402
from snrecon.errors import InputError, SnreconWarning  # noqa: E402
from snrecon.io.mrd import is_mrd, load_mrd  # noqa: E402

NY, NX, COILS = 8, 6, 2
HEAD = mrd.header((2 * NX, NY, 1), acceleration=(1, 1), bandwidth=0.8)


def readouts(**fields: Any) -> list[Any]:
    rng = np.random.default_rng(0)
    shape = (COILS, NY + 2, 2 * NX)
    k = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    noise = [mrd.readout(k[:, NY + i], "IS_NOISE_MEASUREMENT") for i in range(2)]
    return noise + mrd.lines(k[:, :NY], **fields)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mrd.write(tmp_path_factory.mktemp("mrd") / "valid.h5", HEAD, readouts())


def refused(path: Path, words: str, key: str | None = None) -> None:
    with pytest.raises(InputError) as caught:
        load_mrd(path, key=key)
    text = str(caught.value)
    assert text.startswith(str(path)), text
    assert "\n" not in text
    assert text.endswith(".")
    assert re.search(words, text), text


def change_xml(old: str, new: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        text = file["dataset/xml"][0].decode()
        assert old in text
        file["dataset/xml"][0] = text.replace(old, new, 1).encode()

    return change


def change_head(row: int | slice, field: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        records = file["dataset/data"][:]
        target = records["head"]
        *path, last = field.split(".")
        for name in path:
            target = target[name]
        target[last][row] = value
        file["dataset/data"][:] = records

    return change


def change_data(row: int, value: np.ndarray) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        records = file["dataset/data"][:]
        records["data"][row] = value
        file["dataset/data"][:] = records

    return change


def delete(name: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]

    return change


SAMPLES = 2 * COILS * 2 * NX
BOTH = 1 << (ismrmrd.ACQ_IS_NOISE_MEASUREMENT - 1)
NOTHING = np.zeros(SAMPLES, dtype=np.float32)


def spoilt(folder: Path, valid: Path, change: Callable[[h5py.File], None]) -> Path:
    """A copy of a file with a change."""
    path = folder / "bad.h5"
    shutil.copy(valid, path)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (delete("dataset/xml"), "has no XML header"),
        (change_xml("<", "?"), "not a valid ISMRMRD header"),
        (change_xml("encodedSpace>", "someSpace>"), "not a valid ISMRMRD header"),
        (change_xml("<ismrmrdHeader", "<!DOCTYPE a []><ismrmrdHeader"), "defines entities"),
        (change_xml("cartesian", "radial"), "trajectory is radial"),
        (change_xml("cartesian", "spiral"), "trajectory is spiral"),
        (change_xml("<x>12</x>", "<x>0</x>"), r"matrix size must be .* \(0, 8, 1\)"),
        (change_xml("<x>12</x>", "<x>many</x>"), "matrix size must be"),
        (change_xml("<x>12</x>", "<x>10</x>"), "12 samples .* encoded matrix of 10"),
        (
            change_xml("<y>8</y>", "<y>6</y>"),
            "readout 2 has kspace_encode_step_1 0, .* outside .* 6",
        ),
        (change_xml("<center>4</center>", "<center>9</center>"), "encode_step_1 0, .* outside"),
        (change_xml("<center>4</center>", "<center>x</center>"), "centre of k-space"),
        (change_xml("<y>8</y>", "<y>60000</y>"), "points for each acquired sample"),
        (change_xml("0.8<", "-1<"), "relativeReceiverNoiseBandwidth"),
        (change_xml("0.8<", "NaN<"), "relativeReceiverNoiseBandwidth"),
        (change_head(slice(None), "flags", BOTH), "no image readouts"),
        (change_head(4, "active_channels", 3), "same number of coils"),
        (change_head(4, "number_of_samples", 10), "same number of samples"),
        (
            change_head(slice(None), "number_of_samples", 10),
            "holds 24 samples, but .* 2 coils x 10",
        ),
        (change_head(slice(None), "active_channels", 0), "have no coils"),
        (change_head(slice(None), "number_of_samples", 0), "have no samples"),
        (change_head(slice(None), "discard_post", 12), "discards all of its 12 samples"),
        (
            change_head(5, "idx.kspace_encode_step_1", 500),
            "readout 5 has .* 500, which lies outside",
        ),
        (change_head(slice(None), "encoding_space_ref", 3), "encoding space 3, .* describes 1"),
        (change_data(6, np.full_like(NOTHING, np.nan)), "readout 6 contains NaN"),
        (change_data(6, np.full_like(NOTHING, np.inf)), "readout 6 contains NaN or infinite"),
        (change_data(6, NOTHING[:-1]), "readout 6 holds"),
        (change_data(6, NOTHING[:0]), "readout 6 holds 0 samples"),
    ],
)
def test_each_fault_has_its_sentence(
    tmp_path: Path, valid: Path, change: Callable[[h5py.File], None], words: str
) -> None:
    refused(spoilt(tmp_path, valid, change), words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_head(slice(2, None), "sample_time_us", np.nan), "the image readouts do not share"),
        (change_head(0, "sample_time_us", -1.0), "they have a sampling interval that is not valid"),
        (change_data(0, NOTHING[:-1]), "readout 0 holds"),
    ],
)
def test_fault_that_spoils_only_the_noise_readouts(
    tmp_path: Path, valid: Path, change: Callable[[h5py.File], None], words: str
) -> None:
    path = spoilt(tmp_path, valid, change)
    with pytest.warns(SnreconWarning, match=f"noise readouts are not usable: {words}"):
        scan = load_mrd(path)
    assert scan.noise is None
    assert words in scan.noise_unknown


def test_no_file_and_no_hdf5(tmp_path: Path) -> None:
    refused(tmp_path / "none.h5", "no such file")
    refused(tmp_path, "folder")
    (tmp_path / "text.h5").write_text("not a scan" * 100)
    refused(tmp_path / "text.h5", "truncated or damaged")
    (tmp_path / "empty.h5").touch()
    refused(tmp_path / "empty.h5", "empty")
    assert not is_mrd(tmp_path / "text.h5")
    assert not is_mrd(tmp_path / "none.h5")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_truncated_file(tmp_path: Path, valid: Path, share: float) -> None:
    data = valid.read_bytes()
    path = tmp_path / "cut.h5"
    path.write_bytes(data[: int(len(data) * share)])
    refused(path, "truncated|damaged")
    assert not is_mrd(path)


def test_other_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["kspace"] = np.zeros((2, 3))
        file.create_group("dataset")["data"] = np.zeros(4)
    assert not is_mrd(path)
    refused(path, "not an ISMRMRD file")


def test_wrong_key_and_several_groups(tmp_path: Path) -> None:
    path = mrd.write(tmp_path / "two.h5", HEAD, readouts(), key="first")
    mrd.write(path, HEAD, readouts(), key="second")
    refused(path, "several ISMRMRD datasets; choose one of first, second")
    refused(path, "no ISMRMRD dataset 'third'", key="third")
    assert load_mrd(path, key="second").coils == COILS


def test_records_of_another_layout(tmp_path: Path) -> None:
    path = tmp_path / "layout.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("dataset")
        group.create_dataset("xml", data=[b"<a/>"], dtype=h5py.special_dtype(vlen=bytes))
        kind = np.dtype([("head", [("flags", "<u8")]), ("data", "<f4")])
        group["data"] = np.zeros(3, dtype=kind)
    refused(path, "readout headers lack active_channels, .*; this is not ISMRMRD")
    with h5py.File(path, "r+") as file:
        kind = ismrmrd.hdf5.acquisition_dtype
        del file["dataset/data"]
        file["dataset"].create_dataset("data", (0,), maxshape=(None,), dtype=kind)
    refused(path, "holds no readouts")


def test_readouts_declared_but_absent(tmp_path: Path, valid: Path) -> None:
    """A file that promises a thousand million readouts is refused before any memory is taken."""
    path = tmp_path / "many.h5"
    shutil.copy(valid, path)
    with h5py.File(path, "r+") as file:
        file["dataset/data"].resize((10**9,))
    refused(path, "readouts")


def test_mutated_bytes(valid: Path) -> None:
    """Damage anywhere in the file ends in a scan or a sentence: no crash, hang or memory hunger."""
    assert_survived([Job("snrecon.io.mrd:load_mrd", str(valid), count=1000)], least_refused=0.2)


def test_mutated_header_and_records(tmp_path: Path) -> None:
    """Wrong values in an intact container, which damaged bytes seldom reach."""
    rng = np.random.default_rng(11)
    xml = mrd.xsd.ToXML(HEAD).encode() + b" " * 16  # room for longer numbers
    path = mrd.write(tmp_path / "mutant.h5", xml, readouts())
    places: list[int] = []
    with h5py.File(path) as file:
        file["dataset/data"].id.chunk_iter(lambda piece: places.append(piece.byte_offset))
        kind = file["dataset/data"].dtype["head"]
    content = path.read_bytes()
    spot = content.index(xml)
    found = list(re.finditer(rb">([0-9.]+)<", xml))
    wrong = [b"0", b"-1", b"65535", b"99999999999", b"NaN", b"1e400", b"", b"x", b"3.5", b"64"]
    outcomes = {"accepted": 0, "refused": 0}
    for _ in range(400):
        mutant = bytearray(content)
        if rng.random() < 0.5:
            number = found[rng.integers(len(found))]
            value = wrong[rng.integers(len(wrong))]
            text = xml[: number.start(1)] + value + xml[number.end(1) :]
            mutant[spot : spot + len(xml)] = text.ljust(len(xml))[: len(xml)]
        else:
            outer = rng.random() < 0.7
            fields = kind.fields if outer else kind["idx"].fields
            name = str(rng.choice([n for n in fields if n != "idx"]))
            start = fields[name][1] + (0 if outer else kind.fields["idx"][1])
            value = rng.bytes(fields[name][0].itemsize)
            rows = places if rng.random() < 0.3 else [places[rng.integers(len(places))]]
            for place in rows:
                mutant[place + start : place + start + len(value)] = value
        path.write_bytes(mutant)
        outcomes[read_or_refuse(path)] += 1
    assert min(outcomes.values()) > 40, outcomes


def read_or_refuse(path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", SnreconWarning)
        try:
            scan = load_mrd(path)
        except InputError as error:
            text = str(error)
            good = text.startswith(str(path)) and "\n" not in text
            return "refused" if good else text
    return "accepted" if isinstance(scan, Scan) else str(type(scan))
