"""Several reconstructions of one scan: their mean, and how far they disagree.

Networks trained from different random starts, or on different data, disagree where the data do not
say what they should answer: Lakshminarayanan et al., Simple and scalable predictive uncertainty
estimation using deep ensembles, NeurIPS 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from snrecon.data import Scan
from snrecon.errors import InputError, naming
from snrecon.noise.problem import Problem, Progress, Reconstruction, bind
from snrecon.recon.base import Bound, Reconstructor
from snrecon.recon.option_types import seed_number
from snrecon.uncertainty.draws import draw_seed
from snrecon.uncertainty.intervals import checked_level, tail
from snrecon.uncertainty.sample_moments import SampleMoments
from snrecon.uncertainty.spread_map import ENSEMBLE, SpreadMap


def ensemble(
    recons: Sequence[Reconstruction],
    scan: Scan,
    *,
    level: float = 0.95,
    keep: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> SpreadMap:
    """Reconstruct with every member, and say how they spread.

    Args:
        recons: Two or more Reconstructors or callables, with images in the same units.
        scan: One slice or one 3D grid.
        level: What the intervals of the magnitude cover, of members drawn like these; with the few
            members of an ensemble they are normal approximations with Student's t.
        keep: Hold all images as ``result.samples``, in the order of the members.
        seed: Of members that draw: each is bound to a seed of its own, ``result.seeds``, so that
            their own spread counts. Bound ones stay with the draw that they have.
        progress: ``progress(done, total, message)``.

    Returns:
        Mean, spread over the members with its standard error, intervals.

    Raises:
        InputError: for fewer than two members, a stack, or members whose images differ in shape, in
            kind (real or complex) or in units.
    """
    try:
        members = list(recons)
    except TypeError as error:
        raise InputError(
            f"an ensemble is a list of reconstructions, not {type(recons).__name__}."
        ) from error
    if len(members) < 2:
        raise InputError(f"an ensemble has at least 2 members, not {len(members)}.")
    if scan.layout == "stack":
        raise InputError(f"{scan.source}: choose one slice of the stack (slice=N, --slice N).")
    level, seed = checked_level(level), seed_number(seed)
    seeds = tuple(draw_seed(seed, k) for k in range(len(members)))
    draw = False
    moments: SampleMoments | None = None
    names: list[str] = []
    units = ""
    frozen: dict[str, None] = {}
    for index, member in enumerate(members):
        bound = _bound(member, scan, seeds[index])
        draw = draw or bound.stochastic
        with torch.no_grad():
            image = Problem(bound, scan).image
        if moments is None:
            units = bound.units
            moments = SampleMoments.empty(image, tail(len(members), level), keep)
        elif image.shape != moments.origin.shape or image.dtype != moments.origin.dtype:
            raise InputError(
                f"the members' images differ: {bound.method} returned {image.dtype} of shape "
                f"{tuple(image.shape)}, {names[0]} {moments.origin.dtype} of shape "
                f"{tuple(moments.origin.shape)}."
            )
        if bound.units != units:
            raise InputError(
                f"the members' images differ in units: {names[0]} gives {units}; {bound.method} "
                f"gives {bound.units}; leave one of them out."
            )
        moments = moments.added(image.unsqueeze(0))
        names.append(bound.method)
        frozen |= dict.fromkeys(bound.frozen)
        if progress is not None:
            progress(index + 1, len(members), bound.method)
    assert moments is not None
    return SpreadMap.of(
        moments, level, kind=ENSEMBLE, method=f"ensemble of {', '.join(dict.fromkeys(names))}",
        units=units, frozen=tuple(frozen), acceleration=scan.acceleration,
        geometry=scan.geometry, details={"members": names, "source": scan.source},
        seed=seed if draw else None, seeds=seeds if draw else ())


def _bound(member: Reconstruction, scan: Scan, seed: int) -> Bound:
    """A member at the draw of its seed, if it draws."""
    if not isinstance(member, Reconstructor):
        return bind(member, scan)
    with naming(scan.source):
        return member.bind(scan, torch.Generator().manual_seed(seed))
