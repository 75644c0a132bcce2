"""State files: what a run has accumulated, so that it can be resumed and merged."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snrecon.data import CONVENTION, Geometry, NoiseMap
from snrecon.errors import InputError
from snrecon.noise.accumulated import Accumulated
from snrecon.noise.folds import FoldMoments
from snrecon.noise.moments import Moments
from snrecon.noise.pairs import PairMoments

VERSION = 1
KINDS: dict[str, type[Accumulated]] = {
    kind.kind: kind for kind in (Moments, FoldMoments, PairMoments)
}


@dataclass(eq=False)
class State:
    """Moments of one slice (or 3D grid) and all that is needed to turn them into a NoiseMap."""

    moments: Accumulated
    image: Tensor
    full_sigma: Tensor | None
    header: dict[str, Any]
    """``fingerprint``, ``estimator``, ``method``, ``frozen``, ``acceleration``, ``details``."""
    seeds: dict[int, int] = field(default_factory=dict)
    """Samples drawn for each seed; probe k of a seed is always the same probe."""

    def merged(self, other: State) -> State:
        """Both sets of samples together.

        Raises:
            InputError: if they are of different problems, or share a seed.
        """
        for key, what in (("fingerprint", "scan or method"), ("estimator", "estimator")):
            if self.header[key] != other.header[key]:
                raise InputError(f"the states cannot be merged: they are of a different {what}.")
        if noise_scale(self.header) != noise_scale(other.header):
            scales = f"{noise_scale(self.header):g} and {noise_scale(other.header):g}"
            raise InputError(
                f"the states cannot be merged: their replicas are of noise scaled by {scales}.")
        if not same_image(self.image, other.image):
            raise InputError("the states cannot be merged: their images differ.")
        if self.header["estimator"] == "exact":
            raise InputError("the states cannot be merged: exact rows have no sampling error.")
        shared = sorted(set(self.seeds) & set(other.seeds))
        if shared:
            raise InputError(
                f"the states cannot be merged: both used seed {shared[0]}, so their samples are "
                "not independent; run one of them with another --seed."
            )
        return replace(
            self, moments=self.moments.merged(other.moments), seeds={**self.seeds, **other.seeds}
        )

    def result(self) -> NoiseMap:
        """The noise map of the samples so far."""
        seeds = sorted(self.seeds)
        details = {**self.header["details"], "seeds": {str(k): v for k, v in self.seeds.items()}}
        found = self.moments.result(self.image)
        details |= found.facts
        return assemble(
            self.image,
            found.covariance,
            standard_error=found.standard_error,
            full_sigma=self.full_sigma,
            estimator=self.header["estimator"],
            passes=self.moments.passes,
            seed=seeds[0] if seeds else None,
            header=self.header,
            details=details,
        )


def noise_scale(header: Mapping[str, Any]) -> float:
    """By how much the noise of a state's replicas was scaled."""
    return float(header["details"].get("noise_scale", 1.0))


def same_image(first: Tensor, second: Tensor) -> bool:
    """Whether two reconstructions agree but for rounding on different machines."""
    if first.shape != second.shape:
        return False
    gap = torch.linalg.vector_norm((first - second.to(first)).flatten())
    return bool(gap <= 1e-3 * torch.linalg.vector_norm(first.flatten()))


def assemble(
    image: Tensor,
    covariance: Tensor,
    *,
    standard_error: Tensor | None,
    full_sigma: Tensor | None,
    estimator: str,
    passes: float,
    seed: int | None,
    header: dict[str, Any],
    details: dict[str, Any],
) -> NoiseMap:
    """A NoiseMap from the 2x2 covariance ``(3, *image)`` of ``conj(u) dx`` (Var a, Var b, Cov).

    Raises:
        ValueError: if it has NaN or infinite voxels: the computation failed.
    """
    if not bool(torch.isfinite(covariance).all()):
        raise ValueError(f"the noise map of {header['method']} has NaN or infinite voxels")
    real = image.real.dtype if image.is_complex() else image.dtype
    variance_a, variance_b, _ = covariance
    sigma = variance_a.sqrt()
    size = image.abs().to(sigma)
    tiny = torch.finfo(real).tiny
    # Without noise there is no SNR to speak of: such voxels (off the maps' support) carry zeros.
    snr = torch.where(sigma > 0, size / sigma.clamp_min(tiny), 0)
    phase = None
    if image.is_complex():
        phase = torch.where(size > 0, variance_b.sqrt() / size.clamp_min(tiny), 0).to(real)
    g_factor = None
    if full_sigma is not None:
        root = float(header["acceleration"]) ** 0.5
        full = full_sigma.to(sigma)
        g_factor = torch.where(full > 0, sigma / (full * root).clamp_min(tiny), 0).to(real)
    if standard_error is None:
        standard_error = torch.zeros_like(sigma)
    geometry = header.get("geometry")
    return NoiseMap(
        image=image,
        sigma=sigma.to(real),
        sigma_complex=(variance_a + variance_b).sqrt().to(real),
        snr=snr.to(real),
        sigma_phase=phase,
        g_factor=g_factor,
        standard_error=standard_error.to(real),
        covariance=covariance.to(real),
        estimator=estimator,
        passes=passes,
        seed=seed,
        convention=CONVENTION,
        frozen=tuple(header["frozen"]),
        method=header["method"],
        units=header.get("units", NoiseMap.units),
        acceleration=float(header["acceleration"]),
        geometry=geometry if isinstance(geometry, Geometry) else _geometry(geometry),
        details=details,
    )


def _geometry(fields: dict[str, Any] | None) -> Geometry | None:
    if not fields:
        return None
    return Geometry(**{name: tuple(value) for name, value in fields.items()})


@dataclass(frozen=True)
class Stack:
    """What a state file is of: so many slices, each with a state of its own, or one grid."""

    slices: int = 1
    layout: str = "grid"


ONE = Stack()


def save_states(states: Mapping[int, State], path: Path, stack: Stack = ONE) -> None:
    """Write the states of some slices beside ``path``, then rename: an interrupt never tears the
    file. Those of other slices that it holds are copied, without being read into memory."""
    import h5py

    temporary = path.with_name(path.name + ".partial")
    try:
        with h5py.File(temporary, "w") as file:
            file.attrs["snrecon_state"] = VERSION
            file.attrs["slices"], file.attrs["layout"] = stack.slices, stack.layout
            for index, state in states.items():
                _write(state, file.create_group(f"slice_{index}"))
            if path.exists():
                with h5py.File(path, "r") as before:
                    for name in before:
                        if name not in file:
                            before.copy(name, file)
        os.replace(temporary, path)
    except (OSError, RuntimeError, KeyError) as error:
        raise InputError(f"{path}: the state could not be written ({error}).") from error
    finally:
        temporary.unlink(missing_ok=True)


def _write(state: State, group: Any) -> None:
    header = {**state.header, "seeds": {str(k): v for k, v in state.seeds.items()}}
    geometry = header.get("geometry")
    if isinstance(geometry, Geometry):
        header["geometry"] = {k: list(v) for k, v in vars(geometry).items()}
    group.attrs["header"] = json.dumps(header, default=str)
    group.attrs["kind"] = state.moments.kind
    for name, number in state.moments.attributes().items():
        group.attrs[name] = number
    group["image"] = state.image.cpu().numpy()
    if state.full_sigma is not None:
        group["full_sigma"] = state.full_sigma.cpu().numpy()
    for name, part in state.moments.arrays().items():
        group[name] = part.cpu().numpy()


def load_states(path: Path, only: int | None = None) -> dict[int, State]:
    """Read a state file, of all slices or, with ``only``, of one if it is there.

    Raises:
        InputError: if it is absent, not a state file, or damaged.
    """
    import h5py

    if not path.is_file():
        raise InputError(f"{path}: there is no such state file.")
    states = {}
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("snrecon_state") != VERSION:
                raise InputError(f"{path}: this is not a state file of this version of snrecon.")
            if not len(file):
                raise InputError(f"{path}: the state file is empty.")
            for name, group in file.items():
                index = int(name.removeprefix("slice_"))
                if only is None or index == only:
                    states[index] = _read(group, path)
                elif "header" not in group.attrs or "image" not in group:  # will be copied
                    raise InputError(f"{path}: the state file is damaged ({name}).")
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: the state file is damaged ({error}).") from error
    return states


def _read(group: Any, path: Path) -> State:
    header = json.loads(group.attrs["header"])
    seeds = {int(k): int(v) for k, v in header.pop("seeds").items()}
    arrays = {key: torch.from_numpy(np.asarray(group[key])) for key in group}
    image = arrays["image"]
    attributes = dict(group.attrs)
    kind = KINDS.get(str(attributes.get("kind", Moments.kind)))
    if kind is None:
        raise InputError(f"{path}: this is the state of another command, not of a noise map.")
    moments = kind.restored(arrays, attributes)
    grids = {tuple(part.shape[-image.ndim :])
             for part in moments.arrays().values() if part.ndim >= image.ndim}
    if grids != {tuple(image.shape)}:
        raise InputError(f"{path}: the state file is damaged (shapes differ).")
    return State(moments, image, arrays.get("full_sigma"), header, seeds)


def stack_of(path: Path) -> Stack | None:
    """What the file says it is of; None for one that says nothing."""
    import h5py

    with h5py.File(path, "r") as file:
        if "slices" not in file.attrs:
            return None
        return Stack(int(file.attrs["slices"]), str(file.attrs["layout"]))
