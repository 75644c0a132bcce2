"""The demonstration: a simulated brain scan, the noise of two reconstructions, and a check."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from snrecon.data import NoiseMap, Scan
from snrecon.errors import InputError
from snrecon.report.agreement import Agreement, agreement
from snrecon.report.result_text import inside

Progress = Callable[[int, int | None, str], None]
PASSES = 128
"""Probes, and as many replicas: about 6 % error of sigma each."""
PENALTY = 0.005
"""Lambda of SENSE: about the noise variance of the whitened data over the mean power of the image
(Wiener), without which random sampling leaves SENSE too ill-conditioned to be of use."""


@dataclass(frozen=True, eq=False)
class Demo:
    """What the demonstration found and wrote."""

    files: tuple[Path, ...]
    """What was written; the NIfTI maps of a result are one entry with a ``*``."""
    network: NoiseMap
    """VarNet with the sketch."""
    sense: NoiseMap
    """SENSE with its analytic map."""
    check: Agreement
    """Sketch against Monte Carlo."""
    seconds: float

    @staticmethod
    def run(
        folder: str | Path,
        shape: tuple[int, int] = (128, 128),
        passes: int = PASSES,
        method: str = "varnet",
        progress: Progress | None = None,
        stage: Callable[[str], None] | None = None,
    ) -> Demo:
        """Simulate, reconstruct, map the noise, check and draw.

        Args:
            folder: Where everything is written; made if it does not exist.
            shape: Matrix ``(ky, kx)``.
            passes: Number of probes and of replicas.
            method: The learned (or any other nonlinear) method to show.
            progress: Called as ``progress(done, total, message)``.
            stage: Called with the title of every stage.

        Raises:
            InputError: if the folder cannot be made or written to.
        """
        from snrecon.noise import noise_map
        from snrecon.physics.phantom import simulate_scan
        from snrecon.recon import load
        from snrecon.report.figure import figure

        started = time.monotonic()
        tell = stage or (lambda title: None)
        folder = _folder(Path(folder))
        tell("simulating the scan")
        scan = simulate_scan(shape, calibration=shape[0] // 8)
        files = [save_scan(scan, folder / "scan.npz")]
        recon = load(method)
        tell(f"{method}: sketch")
        exactly: dict[str, Any] = {"tolerance": 0, "max_passes": passes, "progress": progress}
        network = noise_map(recon, scan, estimator="sketch", seed=1, **exactly)
        tell(f"{method}: Monte Carlo check")
        replicas = noise_map(recon, scan, estimator="replicas", seed=2, **exactly)
        tell("sense: analytic map")
        sense = noise_map(load("sense", lamda=PENALTY), scan, estimator="analytic")
        tell("writing")
        name = method.replace(":", "_")
        files += _save(network, folder, name)
        files.append(folder / f"{name}_monte_carlo.h5")
        replicas.save(files[-1])
        files += _save(sense, folder, "sense")
        files.append(figure(network, folder / "demo.png", monte_carlo=replicas, other=sense))
        check = agreement(network, replicas)
        return Demo(tuple(files), network, sense, check, time.monotonic() - started)

    def __str__(self) -> str:
        a, b = self.network, self.sense
        lines = [
            f"{a.method}, R = {a.acceleration:.2f}: median SNR "
            f"{float(a.snr[inside(a)].median()):.1f}, sigma known to {a.relative_error:.1%} after "
            f"{a.passes:g} {a.estimator} passes",
            f"{b.method}: median SNR {float(b.snr[inside(b)].median()):.1f}, {b.estimator} map",
            f"{a.estimator} against Monte Carlo: {self.check}",
            *(f"wrote {path}" for path in self.files),
            f"{self.seconds:.0f} s; next: snrecon info {self.files[0]}",
        ]
        return "\n".join(lines)


def _folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or "not possible").lower()
        raise InputError(f"--out {folder}: cannot make this folder ({reason}).") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"--out {folder}: no permission to write there.")
    return folder


def _save(result: NoiseMap, folder: Path, name: str) -> list[Path]:
    """As ``.h5``, and as NIfTI where its library is there."""
    path = folder / f"{name}.h5"
    result.save(path)
    if find_spec("nibabel") is None:
        return [path]
    result.save(folder / f"{name}.nii.gz")
    return [path, folder / f"{name}_*.nii.gz"]


def save_scan(scan: Scan, path: Path) -> Path:
    """Write k-space, mask, maps and noise covariance as an ``.npz`` that ``load`` reads."""
    noise = scan.require_noise()
    arrays: dict[str, Any] = {
        "kspace": scan.kspace.numpy(),
        "mask": scan.sampled.numpy(),
        "noise_covariance": noise.covariance.numpy(),
    }
    if scan.maps is not None:
        arrays["maps"] = scan.maps.numpy()
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as stream:
            np.savez(stream, **arrays)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path
