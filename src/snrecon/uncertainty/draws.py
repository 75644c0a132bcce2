"""A stochastic reconstruction with its draws: seeds in, samples of the image out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError, naming
from snrecon.noise.problem import (
    Problem,
    Reconstruction,
    bind,
    digest_of,
    probe_generator,
)
from snrecon.noise.sampling import StateFile
from snrecon.physics.jacobian import Linearization, NotDifferentiableError, first_line
from snrecon.recon.base import Bound

STREAM = 21


def draw_seed(seed: int, index: int, stream: int = STREAM) -> int:
    """Seed of one draw: that of ``torch.Generator().manual_seed``, to repeat the draw alone.

    Args:
        seed: The user's seed.
        index: Number of the draw.
        stream: Separates uses that share a seed.
    """
    return probe_generator(seed, index, stream).initial_seed()


@dataclass(frozen=True, eq=False)
class Draws(Problem):
    """``x = f(y, z)`` at the measured ``y``, where z follows from a seed; ``bound`` is f at the
    first of the seeds, and ``image`` its sample."""

    recon: Reconstruction = None
    first: int = 0
    """Seed of ``bound``."""
    settings: str = ""
    """What else tells one run from another, for the fingerprint."""

    @property
    def together(self) -> bool:
        """Several samples come from one call."""
        return self.bound.sample is not None

    def at(self, seed: int) -> Bound:
        """f at fixed draws."""
        if seed == self.first:
            return self.bound
        if isinstance(self.recon, Bound):
            return _alone(self.recon, seed)
        with naming(self.scan.source):
            found = self.recon.bind(self.scan, torch.Generator().manual_seed(seed))
        assert isinstance(found, Bound)
        return found

    def pushed(self, seed: int, tangent: Tensor) -> tuple[Tensor, Tensor]:
        """f at fixed draws and the measured k-space, and its Jacobian product with one tangent
        ``(coil, *grid)``; in forward mode, by the method's own way where it has one.

        Raises:
            NotDifferentiableError: if there is no forward derivative.
        """
        bound, kspace = self.at(seed), self.scan.kspace
        with torch.no_grad():
            if bound.linearize is not None:
                value, product = bound.linearize(kspace)
                return value, product(tangent.unsqueeze(0))[0]
            try:
                pair = torch.func.jvp(bound.function, (kspace,), (tangent,))
            except (RuntimeError, NotImplementedError, TypeError) as error:
                raise NotDifferentiableError(
                    f"the reconstruction has no forward derivative ({first_line(error)})"
                ) from error
        return pair[0], pair[1]

    def samples(self, kspace: Tensor, seeds: Sequence[int]) -> Tensor:
        """Samples ``(seed, *image)`` for one k-space ``(coil, *grid)``.

        Raises:
            ValueError: if one of them has NaN or infinite voxels: the computation failed.
        """
        with torch.no_grad():
            if self.bound.sample is not None:
                found = self.bound.sample(kspace, list(seeds))
            else:
                found = torch.stack([self.at(seed)(kspace) for seed in seeds])
        if not bool(torch.isfinite(torch.view_as_real(found) if found.is_complex() else found)
                    .all()):
            raise ValueError(f"a sample of {self.bound.method} has NaN or infinite voxels")
        return found.detach()

    @cached_property
    def linearization(self) -> Linearization:
        """f at the first draws; not traced, as few products with each f are taken."""
        return Linearization(self.bound.function, self.scan.kspace, batched=self.bound.batched,
                             own=self.bound.linearize, traced=False)

    @cached_property
    def fingerprint(self) -> str:
        """Identifies scan, method and settings; the noise need not be known."""
        noise, scan = self.scan.noise, self.scan
        known = (None, None) if noise is None else (noise.covariance, noise.spectrum)
        digest = digest_of(scan.kspace, scan.sampled, scan.maps, *known)
        digest.update(repr((self.bound.method, self.bound.frozen, self.settings)).encode())
        return digest.hexdigest()


def state_of(path: str | Path | None, seed: int) -> StateFile | None:
    """The state file, if there is a path.

    Raises:
        InputError: if it is damaged, or was begun with another seed.
    """
    found = StateFile.at(path)
    stored = None if found is None else found.stored()
    if stored is not None and not stored.seeds:
        raise InputError(f"{path}: this is the state of exact rows; choose another state file.")
    if stored is not None and seed not in stored.seeds:
        raise InputError(
            f"{path}: the state was drawn with seed {min(stored.seeds)}, not {seed}; use that seed "
            "to go on, or another state file."
        )
    return found


def draws(
    recon: Reconstruction, scan: Scan, first: int, settings: str = "", why: str = ""
) -> Draws:
    """Bind a stochastic reconstruction at its first seed.

    Args:
        recon: A Reconstructor that draws, or a stochastic Bound with the fast path ``sample``.
        scan: One slice or one 3D grid.
        first: Seed of the first draw.
        settings: See :class:`Draws`.
        why: What a method that does not draw lacks, ahead of what to do.

    Raises:
        InputError: for a stack, for what is no reconstruction, and for one that does not draw.
    """
    if scan.layout == "stack":
        raise InputError(f"{scan.source}: choose one slice of the stack (slice=N, --slice N).")
    if hasattr(recon, "bind") and not isinstance(recon, Bound):
        with naming(scan.source):
            found = recon.bind(scan, torch.Generator().manual_seed(first))
        bound = found if isinstance(found, Bound) else bind(recon, scan)
    else:
        bound = bind(recon, scan)
    if not bound.stochastic:
        raise InputError(
            f"{bound.method} is deterministic, so {why or 'it has no posterior samples'}; use a "
            "sampler (score, langevin), a network with dropout (uncertainty.Dropout), or the "
            "spread over several networks (uncertainty.ensemble)."
        )
    if isinstance(recon, Bound):
        if recon.sample is None:
            raise InputError(
                f"{bound.method} is bound to one draw already; give the method itself, not what "
                "its bind returned."
            )
        bound = _alone(recon, first)
    # Now: a method may add to its details what it finds when it is called.
    return Draws(bound, scan, recon, first, f"{settings}; {_stable(bound.details)}")


def _stable(facts: Any) -> Any:
    """What a method says of itself without floating-point numbers, whose last digits depend on the
    machine where they were computed, except for the user's ``options``."""
    if isinstance(facts, Mapping):
        return {str(key): facts[key] if key == "options" else _stable(facts[key])
                for key in sorted(facts, key=str)}
    if isinstance(facts, list | tuple):
        return [_stable(value) for value in facts]
    return facts if isinstance(facts, bool | int | str | None) else type(facts).__name__


def _alone(bound: Bound, seed: int) -> Bound:
    """Bound to one seed, by the fast path."""
    sample = bound.sample
    assert sample is not None
    return replace(bound, function=lambda kspace: sample(kspace, [seed])[0], batched=False,
                   linearize=None)
