"""The readouts of an ISMRMRD file: their headers at once, their samples one by one.

They are read from the HDF5 file directly instead of as acquisitions through the ISMRMRD library:
each access of that library reads the whole record again several times, which takes minutes for
the 10^5 readouts of an ordinary volume, and it neither checks that the number of samples fits the
header nor bounds what a damaged file makes it allocate (:mod:`snrecon.io.mrd_storage`). The
meaning of flags and the schema of the XML header come from the library.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import h5py
import numpy as np

from snrecon.errors import InputError
from snrecon.io.hdf5 import has_dataset, read_text
from snrecon.io.mrd_storage import REFERENCE, Storage

_COUNTERS = (
    "kspace_encode_step_1",
    "kspace_encode_step_2",
    "average",
    "slice",
    "contrast",
    "phase",
    "repetition",
    "set",
)
_WHOLE = (
    "flags",
    "number_of_samples",
    "active_channels",
    "discard_pre",
    "discard_post",
    "center_sample",
    "encoding_space_ref",
)
_VECTORS = ("position", "read_dir", "phase_dir", "slice_dir")
_SKIPPED = {
    "navigator": "ACQ_IS_NAVIGATION_DATA",
    "phase correction": "ACQ_IS_PHASECORR_DATA",
    "feedback (HP)": "ACQ_IS_HPFEEDBACK_DATA",
    "feedback (RT)": "ACQ_IS_RTFEEDBACK_DATA",
    "dummy": "ACQ_IS_DUMMYSCAN_DATA",
    "surface coil correction": "ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA",
    "phase stabilisation reference": "ACQ_IS_PHASE_STABILIZATION_REFERENCE",
    "phase stabilisation": "ACQ_IS_PHASE_STABILIZATION",
}


def is_readouts(group: Any) -> bool:
    """Whether an HDF5 object is a group with ISMRMRD readouts ``data`` (header and samples)."""
    if not isinstance(group, h5py.Group) or not has_dataset(group, "data"):
        return False
    names = group["data"].dtype.names
    return names is not None and {"head", "data"} <= set(names)


class Readouts:
    """All readouts of one dataset group, in the order of acquisition."""

    def __init__(self, group: h5py.Group, name: str, library: ModuleType) -> None:
        """Read the headers of all readouts.

        Args:
            group: Group with ``data`` and ``xml``, open.
            name: File, for messages.
            library: The ISMRMRD library.

        Raises:
            InputError: if the records are not as ISMRMRD defines them.
        """
        self.name, self._ismrmrd = name, library
        self.storage = Storage(group.file, name)
        data = group["data"]
        self._sample = _check_layout(data, name)
        records = self.storage.records(data, data.dtype.itemsize)
        self.count = len(records)
        """Number of readouts."""
        heads = _member(records, data.dtype, "head", data.dtype["head"])
        self._references = _member(records, data.dtype, "data", REFERENCE)
        self.flags = heads["flags"].astype(np.uint64)
        self.samples, self.coils, self.discard_pre, self.discard_post, self.centre, self.space = (
            heads[field].astype(np.int64) for field in _WHOLE[1:]
        )
        with np.errstate(invalid="ignore"):  # signalling NaN of a damaged header
            self.dwell = heads["sample_time_us"].astype(np.float64) * 1e-6
            """Sampling interval, seconds."""
            self.vectors = {field: heads[field].astype(np.float64) for field in _VECTORS}
            """Position (millimetres) and directions, ``(readout, 3)``."""
        self.counters = {field: heads["idx"][field].astype(np.int64) for field in _COUNTERS}

    def has(self, flag: str) -> np.ndarray:
        """Boolean per readout: whether the flag of this name in the library is set."""
        bit = np.uint64(getattr(self._ismrmrd, flag) - 1)
        return (self.flags >> bit) & np.uint64(1) != 0

    @property
    def noise(self) -> np.ndarray:
        """Boolean per readout: noise only."""
        return self.has("ACQ_IS_NOISE_MEASUREMENT")

    @property
    def calibration_only(self) -> np.ndarray:
        """Boolean per readout: calibration that is not part of the image data itself."""
        both = self.has("ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING")
        return self.has("ACQ_IS_PARALLEL_CALIBRATION") & ~both & ~self.noise & ~self.other()[0]

    def other(self) -> tuple[np.ndarray, dict[str, int]]:
        """Boolean per readout: neither image, calibration nor noise; and how many of each kind."""
        found = np.zeros(self.count, dtype=bool)
        counts: dict[str, int] = {}
        for kind, flag in _SKIPPED.items():
            these = self.has(flag) & ~self.noise & ~found
            if these.any():
                counts[kind] = int(these.sum())
                found |= these
        return found, counts

    def samples_of(self, row: int) -> np.ndarray:
        """Samples of one readout, ``(coil, samples)`` complex64.

        Raises:
            InputError: if the number of samples is not what the readout's header says, or one is
                NaN or infinite.
        """
        coils, samples = int(self.coils[row]), int(self.samples[row])
        length = int(self._references["length"][row])
        if length != 2 * coils * samples:
            raise InputError(
                f"{self.name}: readout {row} holds {length // 2} samples, but its header says "
                f"{coils} coils x {samples}; the file is damaged or compressed."
            )
        values = self.storage.elements(self._references[row], self._sample, f"readout {row}")
        if not np.isfinite(values).all():
            raise InputError(f"{self.name}: readout {row} contains NaN or infinite values.")
        return values.view(np.complex64).reshape(coils, samples)


def _member(records: np.ndarray, layout: np.dtype, name: str, dtype: np.dtype) -> np.ndarray:
    """One member of raw records ``(count, size)``."""
    assert layout.fields is not None
    start = layout.fields[name][1]
    raw = np.ascontiguousarray(records[:, start : start + dtype.itemsize])
    return raw.view(dtype)[:, 0]


def read_xml(group: h5py.Group, name: str) -> str:
    """The XML header as text.

    Raises:
        InputError: if there is none.
    """
    text: str | None = None
    if has_dataset(group, "xml") and h5py.check_string_dtype(group["xml"].dtype):
        data, what = group["xml"], f"the XML header of '{group.name}'"
        if h5py.check_string_dtype(data.dtype).length is not None or data.shape != (1,):
            text = read_text(group, "xml")
        else:  # of variable length: not through the library, as for the readouts
            storage = Storage(group.file, name)
            records = storage.records(data, REFERENCE.itemsize)
            reference = np.ascontiguousarray(records).view(REFERENCE)[0, 0]
            text = storage.elements(reference, "u1", what).tobytes().decode("utf-8", "replace")
    if not text or not text.strip("\x00 \t\r\n"):
        raise InputError(f"{name}: the ISMRMRD dataset '{group.name}' has no XML header ('xml').")
    return text.rstrip("\x00")


def _check_layout(data: h5py.Dataset, name: str) -> str:
    """Check the type of the records; the type of a sample's real or imaginary part as stored."""
    if data.shape is None or data.ndim != 1 or data.shape[0] == 0:
        raise InputError(f"{name}: the ISMRMRD dataset holds no readouts.")
    dtype = data.dtype
    head = dtype["head"]
    counters = head["idx"].names if head.names and "idx" in head.names else ()
    missing = {*_WHOLE, *_VECTORS, "sample_time_us"} - set(head.names or ())
    missing |= set(_COUNTERS) - set(counters or ())
    if missing:
        raise InputError(
            f"{name}: the readout headers lack {', '.join(sorted(missing))}; this is not ISMRMRD."
        )
    plain = [head[f] for f in _WHOLE] + [head["idx"][f] for f in _COUNTERS]
    vectors = [head[f] for f in _VECTORS]
    sample = h5py.check_vlen_dtype(dtype["data"])
    good = (
        all(t.kind in "iu" and not t.shape for t in plain)
        and head["sample_time_us"].kind == "f"
        and all(t.shape == (3,) and t.base.kind == "f" for t in vectors)
        and sample in (np.dtype("<f4"), np.dtype(">f4"))
        and not head.hasobject
        and dtype.itemsize == data.id.get_type().get_size()
    )
    if not good:
        raise InputError(f"{name}: the readouts have types that ISMRMRD does not define.")
    return str(sample.str)
