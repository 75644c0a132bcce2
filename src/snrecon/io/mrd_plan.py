"""Which readouts of an ISMRMRD file make up the scan, and where each of them goes in k-space.

Decided from the headers of the readouts alone, before any array is allocated.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from snrecon.errors import InputError, SnreconWarning
from snrecon.io.mrd_header import EncodingSpace, Header
from snrecon.io.mrd_readouts import Readouts

POINTS_PER_SAMPLE = 256
"""A matrix with more points than this per acquired sample is not what was scanned."""


@dataclass(frozen=True)
class Window:
    """Where the samples of a readout lie on the encoded readout axis of the matrix."""

    skip: int
    """Samples to discard at the start, after a reversed readout is turned round."""
    length: int
    """Samples kept."""
    start: int
    """Index of the first kept sample on the encoded axis, whose centre is ``n // 2``."""
    reverse: bool
    """Acquired from the other side."""


@dataclass
class Plan:
    """Placement of the readouts on the encoded grid ``(repetition, slice, z, y)``."""

    encoding: EncodingSpace
    grid: tuple[int, int, int]
    """Encoded ``(nz, ny, nx)``; nz is 1 for 2D."""
    readout_points: int
    """Readout points after the oversampling is removed."""
    coils: int
    repetitions: int
    slices: np.ndarray
    """Slice numbers of the file in stack order."""
    imaging: np.ndarray
    """Rows that fill k-space, increasing; calibration lines of an embedded scan are among them."""
    separate: np.ndarray
    """Rows of a separate reference scan, increasing."""
    first: np.ndarray
    """For every slice the row of its first image readout, for the geometry."""
    place: np.ndarray
    """``(readout, 4)``: repetition, slice, z, y of each row; meaningless for rows not used."""
    windows: dict[int, Window]
    """By row."""
    facts: dict[str, Any] = field(default_factory=dict)
    """For the scan's attributes."""


def make_plan(readouts: Readouts, header: Header) -> Plan:
    """Choose and place the readouts.

    The encoding space, contrast, phase and set are those of the first image readout or the lowest
    number; what else the file holds is counted in ``facts``. Segments and averages are merged.

    Raises:
        InputError: if there are no image readouts, they do not agree in coils or samples, are not
            Cartesian, or lie outside the matrix.
    """
    name = readouts.name
    other, skipped = readouts.other()
    calibration = readouts.calibration_only
    imaging = ~(readouts.noise | other | calibration)
    if not imaging.any():
        raise InputError(
            f"{name}: there are no image readouts among the {readouts.count} readouts of the file."
        )
    reference = int(readouts.space[np.flatnonzero(imaging)[0]])
    if reference >= len(header.encodings):
        raise InputError(
            f"{name}: the readouts refer to encoding space {reference}, but the header describes "
            f"{len(header.encodings)}."
        )
    encoding = header.encodings[reference]
    _check_trajectory(encoding, name)
    same_grid = np.array([e.encoded == encoding.encoded for e in header.encodings])
    known = readouts.space < len(header.encodings)
    fits = known & same_grid[np.minimum(readouts.space, len(header.encodings) - 1)]
    _leave_out(skipped, "other encoding space", imaging, readouts.space == reference)
    _leave_out(skipped, "calibration of another grid", calibration, fits)
    facts: dict[str, Any] = {}
    for counter in ("contrast", "phase", "set"):
        values = readouts.counters[counter]
        found = np.unique(values[imaging])
        if found.size > 1:
            facts[f"{counter}s"] = f"{found.size} in the file, number {found[0]} used"
        _leave_out(skipped, f"other {counter}", imaging, values == found[0])
        if calibration.any():
            _leave_out(
                skipped, f"other {counter}", calibration, values == values[calibration].min()
            )
    grid = _grid(encoding, readouts, imaging, facts)
    slices = _slices(readouts, imaging, grid, skipped, name)
    _leave_out(skipped, "other slice", imaging, np.isin(readouts.counters["slice"], slices))
    _leave_out(skipped, "other slice", calibration, np.isin(readouts.counters["slice"], slices))
    repetitions = np.unique(readouts.counters["repetition"][imaging])
    rows, reference_rows = np.flatnonzero(imaging), np.flatnonzero(calibration)
    _check_agreement(readouts, rows, reference_rows)
    place = _places(readouts, np.union1d(rows, reference_rows), encoding, grid, slices, repetitions)
    separate = np.zeros(0, dtype=np.int64)
    if reference_rows.size:
        rows, separate = _calibration(encoding, place, rows, reference_rows, skipped, facts)
    used = np.union1d(rows, separate)
    windows = _windows(readouts, used, grid[2])
    first = [rows[place[rows, 1] == i][0] for i in range(len(slices))]
    if skipped:
        facts["skipped_readouts"] = skipped
    plan = Plan(
        encoding,
        grid,
        grid[2],
        int(readouts.coils[rows[0]]),
        len(repetitions),
        slices,
        rows,
        separate,
        np.array(first),
        place,
        windows,
        facts,
    )
    plan.readout_points = _readout_points(plan)
    _check_matrix(plan, readouts)
    return plan


def ratio(encoding: EncodingSpace, axis: int) -> float:
    """Encoded over reconstructed field of view along axis 0 (x), 1 (y) or 2 (z).

    From the matrix sizes where a field of view is missing.
    """
    encoded, recon = encoding.encoded, encoding.recon
    if encoded.field_of_view[axis] and recon.field_of_view[axis]:
        return encoded.field_of_view[axis] / recon.field_of_view[axis]
    return encoded.matrix[axis] / recon.matrix[axis]


def cropped(points: int, ratio: float) -> int:
    """Points left of ``points`` when the field of view shrinks by ``ratio``; never more.

    Half a point is as far as the two fields of view may miss a whole number of voxels.
    """
    return points if ratio <= 1 else max(1, round(points / ratio))


def _leave_out(skipped: dict[str, int], kind: str, rows: np.ndarray, keep: np.ndarray) -> None:
    dropped = int((rows & ~keep).sum())
    if dropped:
        skipped[kind] = skipped.get(kind, 0) + dropped
        rows &= keep


def _check_trajectory(encoding: EncodingSpace, name: str) -> None:
    if encoding.trajectory == "epi":
        warnings.warn(
            f"{name}: the EPI readouts are taken as Cartesian, without ramp regridding or ghost "
            "correction.",
            SnreconWarning,
            stacklevel=4,
        )
    elif encoding.trajectory != "cartesian":
        raise InputError(
            f"{name}: the trajectory is {encoding.trajectory}, but only Cartesian scans can be "
            "read."
        )


def _grid(
    encoding: EncodingSpace, readouts: Readouts, imaging: np.ndarray, facts: dict[str, Any]
) -> tuple[int, int, int]:
    nx, ny, nz = encoding.encoded.matrix
    if nz > 1 and np.unique(readouts.counters["kspace_encode_step_2"][imaging]).size == 1:
        facts["partitions"] = f"the header has {nz}, but only one is encoded: read as 2D"
        nz = 1
    return nz, ny, nx


def _slices(
    readouts: Readouts,
    imaging: np.ndarray,
    grid: tuple[int, int, int],
    skipped: dict[str, int],
    name: str,
) -> np.ndarray:
    """Slice numbers sorted by position along the slice direction."""
    numbers = readouts.counters["slice"]
    found, where = np.unique(numbers[imaging], return_index=True)
    rows = np.flatnonzero(imaging)[where]
    if len(found) == 1:
        return found
    if grid[0] > 1:
        warnings.warn(
            f"{name}: of {len(found)} 3D slabs only the first is read.",
            SnreconWarning,
            stacklevel=4,
        )
        return found[:1]
    direction = readouts.vectors["slice_dir"][rows]
    along = readouts.vectors["position"][rows] @ direction[0]
    parallel = np.isfinite(direction).all() and np.isfinite(along).all()
    parallel = parallel and np.allclose(direction, direction[0], atol=1e-3)
    return found[np.argsort(along, kind="stable")] if parallel else found


def _check_agreement(readouts: Readouts, rows: np.ndarray, reference_rows: np.ndarray) -> None:
    used = np.union1d(rows, reference_rows)
    for what, values, chosen in (
        ("coils", readouts.coils, used),
        ("samples", readouts.samples, rows),
    ):
        found = np.unique(values[chosen])
        if found.size > 1:
            raise InputError(
                f"{readouts.name}: the image readouts do not all have the same number of {what} "
                f"({found[0]} and {found[-1]}, for example)."
            )
        if found[0] == 0:
            raise InputError(f"{readouts.name}: the image readouts have no {what}.")


def _places(
    readouts: Readouts,
    rows: np.ndarray,
    encoding: EncodingSpace,
    grid: tuple[int, int, int],
    slices: np.ndarray,
    repetitions: np.ndarray,
) -> np.ndarray:
    place = np.zeros((readouts.count, 4), dtype=np.int64)
    position_of = {int(number): i for i, number in enumerate(slices)}
    # Calibration of a repetition without image readouts goes to the last one.
    repetition = np.searchsorted(repetitions, readouts.counters["repetition"][rows])
    place[rows, 0] = np.minimum(repetition, len(repetitions) - 1)
    place[rows, 1] = [position_of[int(s)] for s in readouts.counters["slice"][rows]]
    for column, counter, points, centre in (
        (2, "kspace_encode_step_2", grid[0], encoding.centre[1]),
        (3, "kspace_encode_step_1", grid[1], encoding.centre[0]),
    ):
        if column == 2 and points == 1:
            continue
        steps = readouts.counters[counter][rows]
        shift = 0 if centre is None else points // 2 - centre
        index = steps + shift
        bad = (index < 0) | (index >= points)
        if bad.any():
            worst = int(np.flatnonzero(bad)[0])
            raise InputError(
                f"{readouts.name}: readout {rows[worst]} has {counter} {steps[worst]}, which lies "
                f"outside the header's matrix of {points} with its centre at step "
                f"{points // 2 if centre is None else centre}."
            )
        place[rows, column] = index
    return place


def _calibration(
    encoding: EncodingSpace,
    place: np.ndarray,
    rows: np.ndarray,
    reference_rows: np.ndarray,
    skipped: dict[str, int],
    facts: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that fill k-space and rows of a separate reference scan.

    Lines for calibration only that fill gaps of the lattice belong to the same acquisition and
    become part of k-space. Those of a separate scan may differ in contrast, so they only serve the
    coil maps. Where the header does not say which it is, a reference scan is recognised by lines
    that the image readouts have as well.
    """
    taken = {tuple(p) for p in place[rows].tolist()}
    again = np.array([tuple(p) in taken for p in place[reference_rows].tolist()])
    mode = encoding.calibration_mode
    if mode in ("separate", "external") or (
        mode not in ("embedded", "interleaved") and bool(again.any())
    ):
        facts["calibration"] = f"separate reference scan, {reference_rows.size} readouts"
        return rows, reference_rows
    if again.any():
        skipped["calibration of image lines"] = int(again.sum())
    facts["calibration"] = f"embedded, {int((~again).sum())} readouts for calibration only"
    return np.union1d(rows, reference_rows[~again]), np.zeros(0, dtype=np.int64)


def _windows(readouts: Readouts, rows: np.ndarray, points: int) -> dict[int, Window]:
    reverse = readouts.has("ACQ_IS_REVERSE")
    found: dict[int, Window] = {}
    cache: dict[tuple[int, int, int, int, bool], Window] = {}
    for row in rows.tolist():
        key = (
            int(readouts.samples[row]),
            int(readouts.discard_pre[row]),
            int(readouts.discard_post[row]),
            int(readouts.centre[row]),
            bool(reverse[row]),
        )
        if key not in cache:
            cache[key] = _window(key, points, f"{readouts.name}: readout {row}")
        found[row] = cache[key]
    return found


def _window(values: tuple[int, int, int, int, bool], points: int, name: str) -> Window:
    samples, pre, post, centre, reverse = values
    length = samples - pre - post
    if length <= 0:
        raise InputError(f"{name} discards all of its {samples} samples.")
    if reverse:
        pre, post, centre = post, pre, samples - 1 - centre
    # A readout as long as the matrix can lie in one place only, whatever the centre it states:
    # many writers leave center_sample at 0, and for reversed readouts the definitions differ.
    start = pre if samples == points else points // 2 - centre + pre
    if start < 0 or start + length > points:
        raise InputError(
            f"{name} has {length} samples with the echo at sample {centre}, which do not fit into "
            f"the header's encoded matrix of {points} readout points."
        )
    return Window(pre, length, start, reverse)


def _readout_points(plan: Plan) -> int:
    """Readout points to keep: the reconstructed field of view, where that is a clean crop.

    A partial echo is cropped within its own window, which needs a whole oversampling factor;
    otherwise the encoded grid stays.
    """
    points = plan.grid[2]
    target = cropped(points, ratio(plan.encoding, 0))
    if target == points:
        return points
    partial = [w.length for w in plan.windows.values() if w.length != points]
    if partial and (points % target or min(partial) < points // target):
        plan.facts["readout_oversampling_removed"] = "no: partial echo on an uneven grid"
        return points
    plan.facts["readout_oversampling_removed"] = (
        f"{points} to {target} points by cropping the image; white noise stays white, its "
        "covariance unchanged"
    )
    return target


def _check_matrix(plan: Plan, readouts: Readouts) -> None:
    nz, ny, nx = plan.grid
    declared = plan.repetitions * len(plan.slices) * nz * ny * nx
    acquired = int(readouts.samples[plan.imaging].sum())
    if declared > POINTS_PER_SAMPLE * acquired:
        raise InputError(
            f"{readouts.name}: the header's matrix of {nx} x {ny} x {nz} has "
            f"{declared // acquired} points for each acquired sample, so the header does not "
            "belong to these data."
        )
