"""The noise readouts of an ISMRMRD file to the noise covariance of its image data."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import torch

from snrecon.data import NoiseModel
from snrecon.errors import InputError, SnreconWarning
from snrecon.io.mrd_header import Header
from snrecon.io.mrd_plan import Plan
from snrecon.io.mrd_readouts import Readouts
from snrecon.physics.noise_estimation import covariance_from_noise_scan


def noise_model(
    readouts: Readouts, header: Header, plan: Plan, counts: torch.Tensor
) -> tuple[NoiseModel | None, str]:
    """Noise covariance of the image data, and "", or None and why the noise readouts do not give it
    (with a warning), or None and "" if there are no noise readouts.

    ``Psi = Psi_noise * (T_noise / T_scan) / B / averages``:

    - ``T``: sampling intervals. The receiver's noise density per hertz is fixed and the bandwidth
      of a sample is 1/T, so the variance of a sample grows as 1/T: a noise scan with a longer
      interval has less noise and is scaled up.
    - ``B = relativeReceiverNoiseBandwidth``, about 0.79 on scanners that state it: the receiver's
      filter rolls off at the edges of the band, so that the noise readouts hold only B times the
      power of a flat band. The image lies in the middle of the oversampled band, where the filter
      is flat, so its noise is *larger* than the average over the band by 1/B. (Data that a tool
      prewhitens by ``L^-1`` of the raw noise scan are multiplied by ``sqrt(B T_scan / T_noise)``:
      the same statement, Kellman and McVeigh, Magn Reson Med 54:1439, 2005.) Without the entry the
      band is taken as flat, B = 1.
    - averages: the mean of n independent readouts has 1/n of the variance. Where the points of
      k-space were not acquired equally often, the covariance is that of the mean variance over the
      sampled points (n is the harmonic mean), with a warning: it is right for the total noise in
      the image, but slightly coloured noise is treated as white.

    Removing readout oversampling by an orthonormal transform does not change the covariance.

    Args:
        readouts: All readouts.
        header: The header.
        plan: Which readouts are used for the image.
        counts: How often each point of the first repetition was acquired.
    """
    rows = np.flatnonzero(readouts.noise)
    if rows.size == 0:
        return None, ""
    try:
        return _estimate(readouts, rows, header, plan, counts), ""
    except InputError as error:
        reason = str(error).removeprefix(f"{readouts.name}: ")
    warnings.warn(
        f"{readouts.name}: the noise readouts are not usable: {reason}",
        SnreconWarning,
        stacklevel=4,
    )
    return None, f"the noise readouts are not usable: {reason.rstrip('.')}"


def _estimate(
    readouts: Readouts, rows: np.ndarray, header: Header, plan: Plan, counts: torch.Tensor
) -> NoiseModel:
    """Noise covariance from the noise readouts ``rows``.

    Raises:
        InputError: if they do not fit the image readouts, are not finite, or are too few.
    """
    name = readouts.name
    if (readouts.coils[rows] != plan.coils).any():
        wrong = readouts.coils[rows][readouts.coils[rows] != plan.coils][0]
        raise InputError(f"they have {wrong} coils, but the image readouts {plan.coils}.")
    interval = _image_interval(readouts, plan)
    own = readouts.dwell[rows]
    if not np.isfinite(own).all() or (own < 0).any():
        raise InputError("they have a sampling interval that is not valid.")
    if interval == 0 or (own == 0).any():
        warnings.warn(
            f"{name}: the sampling interval is not stated for all readouts; the noise scan is "
            "taken to have the bandwidth of the image data.",
            SnreconWarning,
            stacklevel=5,
        )
        own = np.ones(rows.size)
        interval = 1.0
    parts = []
    for row, t in zip(rows.tolist(), own, strict=True):
        data = readouts.samples_of(row)
        end = max(0, data.shape[1] - int(readouts.discard_post[row]))
        kept = data[:, int(readouts.discard_pre[row]) : end]
        parts.append(kept * np.float32(np.sqrt(t / own[0])))  # all to the interval of the first
    samples = torch.from_numpy(np.concatenate(parts, axis=1))
    averages = _averages(counts, name)
    bandwidth = header.noise_bandwidth or 1.0
    if samples.shape[1] < plan.coils:
        raise InputError(f"there are {samples.shape[1]} samples for {plan.coils} coils.")
    model = covariance_from_noise_scan(
        samples,
        dwell_ratio=float(own[0] / interval),
        averages=averages,
        bandwidth_factor=1.0 / bandwidth,
    )
    facts = {
        "noise_readouts": int(rows.size),
        "relative_receiver_noise_bandwidth": (
            "not stated, taken as 1" if header.noise_bandwidth is None else bandwidth
        ),
    }
    return replace(model, details={**model.details, **facts})


def _image_interval(readouts: Readouts, plan: Plan) -> float:
    intervals = readouts.dwell[plan.imaging]
    if (
        not np.isfinite(intervals).all()
        or (intervals < 0).any()
        or np.ptp(intervals) > (1e-3 * intervals[0])
    ):
        raise InputError("the image readouts do not share one valid sampling interval.")
    return float(intervals[0])


def _averages(counts: torch.Tensor, name: str) -> float:
    taken = counts[counts > 0].double()
    fewest, most = int(taken.min()), int(taken.max())
    if fewest == most:
        return float(fewest)
    mean = float(1 / (1 / taken).mean())
    warnings.warn(
        f"{name}: points of k-space were acquired between {fewest} and {most} times; the noise is "
        f"that of {mean:.3g} averages everywhere.",
        SnreconWarning,
        stacklevel=6,
    )
    return mean
