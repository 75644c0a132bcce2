"""What a noise predictor learns from: measurements, and unbiased sketches of their noise.

A label is a mean of few Jacobian products, far from the truth in every voxel but right on average;
a network that cannot learn their scatter by heart learns what they scatter about.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snrecon.data import NoiseModel, Scan
from snrecon.errors import InputError
from snrecon.networks.store import checksum
from snrecon.noise.crossfit import coefficients, controlled
from snrecon.noise.folds import FoldMoments
from snrecon.noise.predicted import look
from snrecon.noise.problem import Problem
from snrecon.noise.sketch import random_phase
from snrecon.noise.surrogate import LineSurrogate
from snrecon.physics.precision import low_precision, low_precision_pays
from snrecon.recon.registry import available, load
from snrecon.training.config import Config
from snrecon.training.stream import Drawn

BATCH = 4
"""Probes at once on a CPU; elsewhere as many as a half has."""


@dataclass(frozen=True, eq=False)
class Label:
    """One measurement."""

    channels: Tensor
    """:attr:`snrecon.noise.predicted.Look.channels`, ``(16, ky, kx)``."""
    target: Tensor
    """Unbiased estimate of the variance over the reference ``(ky, kx)``, of all probes."""
    halves: Tensor
    """Two independent ones, ``(2, ky, kx)``, plain means of half of the probes each."""
    weight: Tensor
    """1 where there is signal, less elsewhere, 0 outside the coil maps, ``(ky, kx)``."""

    def save(self, path: Path) -> None:
        """Beside, then renamed."""
        from safetensors.torch import save_file

        partial = path.with_name(path.name + ".partial")
        save_file({k: v.contiguous() for k, v in vars(self).items()}, partial)
        partial.replace(path)

    @staticmethod
    def open(path: Path) -> Label | None:
        """None if it is not there or damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return Label(**load_file(path))
        except (OSError, SafetensorError, TypeError, ValueError):
            return None


BACKGROUND = 0.2
"""Weight of voxels without signal."""


def reconstruction(method: str) -> Any:
    """A method of the package by name, or somebody's own as ``package.module:name``.

    Raises:
        InputError: if there is no such thing.
    """
    if method.partition(":")[0] in available():
        return load(method)
    module, colon, name = method.partition(":")
    if not colon:
        return load(method)  # whose sentence names the methods
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"reconstruction.method = '{method}': {error}.") from error
    finally:
        sys.path.pop(0)


def simulated_scan(source: Drawn, index: int) -> Scan:
    """Measurement ``index`` of a source as a scan, whitened, with its maps."""
    batch = source.draw(index, 1)
    kspace, maps, mask = batch.kspace[0], batch.maps[0], batch.mask[0]
    return Scan(kspace=kspace, maps=maps, mask=mask, source=f"measurement {index}",
                noise=NoiseModel(torch.eye(kspace.shape[0], dtype=kspace.dtype)))


def label(recon: Any, scan: Scan, probes: int, seed: int) -> Label | None:
    """Reconstruct a scan and sketch its noise; None where there is no noise to speak of.

    Raises:
        InputError: if the reconstruction gives no image on the scan's grid.
        NotDifferentiableError: if it has no Jacobian products.
    """
    problem = Problem.of(recon, scan)
    surrogate = LineSurrogate.of(problem)
    seen = look(problem, surrogate)
    moments = [FoldMoments.empty(problem.image, None if surrogate is None
                                 else surrogate.variance / 2) for _ in range(2)]
    pays = problem.bound.linearize is not None and low_precision_pays(problem.image.device)
    half = probes // 2
    batch = BATCH if problem.image.device.type == "cpu" else max(half, 1)
    for number in range(2):
        for start in range(number * half, (number + 1) * half, batch):
            indices = range(start, min(start + batch, (number + 1) * half))
            noise = problem.colouring(random_phase(problem, seed, indices))
            with torch.no_grad(), low_precision(torch.bfloat16 if pays else None):
                product = problem.linearization.jvp(noise)
            a, b = problem.project(product if problem.image.is_complex() else product.real)
            f = None if surrogate is None else surrogate(noise) * problem.direction.conj()
            moments[number] = moments[number].added(start, a, b, f)
    one, two = (m.part([k for k in range(16) if int(m.counts[k])]) for m in moments)
    reference = seen.reference
    inside = (reference > 0) & (one.products["aa"] + two.products["aa"] > 0)
    if int(inside.sum()) < 64:
        return None
    scale = torch.where(inside, 1 / reference.clamp_min(torch.finfo(reference.dtype).tiny), 0)
    halves = torch.stack([one.products["aa"], two.products["aa"]]) * scale
    if surrogate is None:
        target = halves.mean(0)
    else:  # what one half is corrected by is fitted to the other: both stay unbiased
        target = (controlled(one, coefficients(two, inside))[0]
                  + controlled(two, coefficients(one, inside))[0]) / 2 * scale
    bright = problem.image.abs() ** 2 >= 9 * reference
    weight = torch.where(bright, 1.0, BACKGROUND) * inside
    return Label(*(part.float().cpu() for part in (seen.channels, target, halves, weight)))


def fingerprint(config: Config) -> str:
    """Of all that a label depends on."""
    settings = config.reconstruction
    parts = [settings.method, str(settings.probes)]
    parts += [repr(asdict(part)) for part in (config.simulation, config.data)]
    weights = settings.method.partition(":")[2]
    if weights and Path(weights).is_file():
        parts.append(checksum(weights))
    parts.append(str(config.trainer.seed))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def labels(
    recon: Any, config: Config, source: Drawn, count: int, folder: Path,
    progress: Callable[[int], None] | None = None,
) -> list[Label]:
    """The first labels of a source, kept in a folder and not made again; made on a GPU if there is
    one.

    Raises:
        InputError: if the reconstruction does not work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    where = "cuda" if torch.cuda.is_available() else "cpu"
    found = []
    for index in range(count):
        path = folder / f"{index}.safetensors"
        one = Label.open(path)
        if one is None:
            scan = simulated_scan(source, index).to(where)
            one = label(recon, scan, config.reconstruction.probes, index)
            if one is None:
                # Kept too, so that it is not made again; a file wants arrays of their own.
                one = Label(*(torch.zeros(1) for _ in range(4)))
            one.save(path)
        if one.weight.ndim == 2:
            found.append(one)
        if progress is not None:
            progress(index + 1)
    if not found:
        raise InputError("none of the measurements has any noise: the reconstruction "
                         f"{config.reconstruction.method!r} answers nothing to it.")
    return found
