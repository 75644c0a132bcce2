"""The loop that sketch and replicas share: draw, accumulate, stop, save, resume."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from snrecon.data import relative_error
from snrecon.data.noise_map import FLOOR
from snrecon.errors import InputError, SnreconWarning
from snrecon.noise.accumulated import Accumulated
from snrecon.noise.memory import CPU_CAP, chunk_size, peak_bytes
from snrecon.noise.moments import Moments
from snrecon.noise.problem import Problem, Progress
from snrecon.noise.state import (
    ONE,
    Stack,
    State,
    load_states,
    noise_scale,
    same_image,
    save_states,
)

BLOCK = 16
"""The tolerance is looked at every 16 samples, whatever the chunk, so that the number of samples
does not depend on the memory at hand."""
SAVE_EVERY = 10.0
"""Seconds between two writes of the state file, or ..."""
SAVE_SHARE = 0.05
"""... the time in which writing takes this share, if that is longer: the file of a large stack."""
UNLIMITED = 10**9

Sampler = Callable[[range], Tensor]
"""Numbers of the samples to image perturbations ``dx``, ``(len, *image)``, or what else a
:class:`Rule` adds up."""


class Rule:
    """What is kept of the samples, and what is known of the map's error: plain moments, and the
    sampling error that they tell.

    Args:
        problem: Function, scan and noise.
        zero_mean: Whether the mean of a sample is known to be zero.
    """

    early = True
    """The first error is looked at as soon as there is one."""
    meaning = ""
    """What the error is, before its number."""

    def __init__(self, problem: Problem, zero_mean: bool) -> None:
        self.problem, self.zero_mean = problem, zero_mean

    def empty(self) -> Accumulated:
        """No samples."""
        return Moments.empty(self.problem.image, self.zero_mean)

    def added(self, state: State, samples: Tensor, indices: range) -> Accumulated:
        """The state's moments with some samples more."""
        assert isinstance(state.moments, Moments)
        return state.moments.added(*self.problem.project(samples))

    def resumed(self, moments: Accumulated) -> Accumulated:
        """Moments from a state file, with what was asked for anew."""
        return moments

    def decides(self, count: int) -> bool:
        """Whether the error is looked at after ``count`` samples: a schedule fixed beforehand."""
        return count > 0 and count % BLOCK == 0

    def error(self, state: State) -> float:
        """What is compared with the tolerance; infinite while unknown."""
        if state.moments.samples < 2:
            return math.inf
        assert isinstance(state.moments, Moments)
        floor = self.problem.bound.details.get(FLOOR)
        return relative_error(state.image, *state.moments.sigma(), floor)


@dataclass
class StateFile:
    """Where one slice's state lives, beside those of the other slices."""

    path: Path
    index: int = 0
    stack: Stack = ONE
    state: State | None = None

    @staticmethod
    def at(path: str | Path | None, index: int = 0, stack: Stack = ONE) -> StateFile | None:
        """The state file at ``path`` with what it holds of a slice already; None for no path."""
        if path is None:
            return None
        path = Path(path)
        if not path.parent.is_dir():
            raise InputError(f"{path}: the folder of the state file does not exist.")
        found = load_states(path, only=index) if path.exists() else {}
        return StateFile(path, index, stack, found.get(index))

    def stored(self) -> State | None:
        """State of this slice, if there is one."""
        return self.state

    def write(self, state: State) -> None:
        """Write this slice's state together with the others."""
        self.state = state
        save_states({self.index: state}, self.path, self.stack)


def run(
    problem: Problem,
    sampler: Sampler,
    *,
    estimator: str,
    rule: Rule,
    tolerance: float,
    max_passes: int | None,
    seed: int,
    progress: Progress | None,
    state_file: StateFile | None,
    chunk: int | None,
    details: dict[str, object],
) -> State:
    """Accumulate samples until the tolerance or ``max_passes`` is reached.

    A KeyboardInterrupt (or any error) leaves the state file with every finished chunk.

    Raises:
        InputError: if the state file belongs to another scan, method, estimator or seed.
    """
    state = _start(problem, estimator, rule, seed, state_file, details)
    limit = UNLIMITED if max_passes is None else max_passes
    done = state.seeds.get(seed, 0)
    others = state.moments.samples - done
    limit -= others
    saved, pause = time.monotonic(), SAVE_EVERY
    unsaved = False
    try:
        error, total = rule.error(state), max_passes
        while done < limit and not _finished(rule, state, tolerance, error):
            indices = _next(done, limit, chunk)
            if tolerance > 0:
                indices = _until_decided(rule, state.moments.samples, indices)
            dx, chunk = _draw(sampler, indices, chunk, problem)
            done = indices.stop
            # One assignment: an interrupt finds the state before this chunk, or after it.
            state = replace(
                state,
                moments=rule.added(state, dx, indices),
                seeds={**state.seeds, seed: done},
            )
            unsaved = True
            # The error costs several passes over the image: only where it can decide something.
            early = rule.early and not math.isfinite(error)
            asked = tolerance > 0 or progress is not None
            if asked and (early or rule.decides(state.moments.samples)):
                error = rule.error(state)
                total = _expected(state, tolerance, error, max_passes)
            if progress is not None:
                known = f": error of sigma {error:.1%}" if math.isfinite(error) else ""
                progress(state.moments.samples, total, f"{estimator}{known}")
            if state_file is not None and time.monotonic() - saved > pause:
                begun = time.monotonic()
                state_file.write(state)
                saved, unsaved = time.monotonic(), False
                pause = max(SAVE_EVERY, (saved - begun) / SAVE_SHARE)
    finally:
        if state_file is not None and unsaved:
            state_file.write(state)
    error = rule.error(state)
    if tolerance > 0 and not error <= tolerance:  # also one that is not known
        count = f"{state.moments.passes:g}"
        found = f"{count} passes are too few to tell the noise map's error"
        if math.isfinite(error):
            found = (f"the noise map's error is {rule.meaning}{error:.1%} after {count} passes, "
                     f"above the tolerance of {tolerance:.1%}")
        warnings.warn(
            f"{found}; raise max_passes (--max-passes) to reach it.",
            SnreconWarning,
            stacklevel=2,
        )
    return state


def _start(
    problem: Problem,
    estimator: str,
    rule: Rule,
    seed: int,
    state_file: StateFile | None,
    details: dict[str, object],
) -> State:
    header = {
        "fingerprint": problem.fingerprint,
        "estimator": estimator,
        "method": problem.bound.method,
        "frozen": list(problem.bound.frozen),
        "acceleration": problem.scan.acceleration,
        "geometry": problem.scan.geometry,
        "units": problem.bound.units,
        "details": details,
    }
    stored = state_file.stored() if state_file is not None else None
    if stored is None:
        return State(rule.empty(), problem.image, problem.full_sigma, header)
    assert state_file is not None
    for key, what in (("fingerprint", "scan or method"), ("estimator", "estimator")):
        if stored.header[key] != header[key]:
            raise InputError(
                f"{state_file.path}: the state is of another {what}; choose another --state file."
            )
    if noise_scale(stored.header) != noise_scale(header):
        raise InputError(
            f"{state_file.path}: the state is of replicas with noise_scale = "
            f"{noise_scale(stored.header):g}, not {noise_scale(header):g}; choose another --state "
            "file."
        )
    if not same_image(problem.image, stored.image):
        raise InputError(
            f"{state_file.path}: the state is of another reconstruction of this scan; choose "
            "another --state file."
        )
    if seed not in stored.seeds:
        raise InputError(
            f"{state_file.path}: the state was drawn with seed {min(stored.seeds)}, not {seed}; "
            "use that seed to go on, or another --state file and merge the two."
        )
    device = problem.image.device
    moments = rule.resumed(stored.moments.to(device))
    return State(moments, problem.image, problem.full_sigma, header, stored.seeds)


def _next(start: int, limit: int, chunk: int | None) -> range:
    """The next samples, never across a multiple of BLOCK; one until a chunk size is known."""
    block_end = (start // BLOCK + 1) * BLOCK
    return range(start, min(start + (chunk or 1), block_end, limit))


def _until_decided(rule: Rule, samples: int, indices: range) -> range:
    """No more of the next samples than the rule wants before it looks: when a run ends must not
    depend on how many fit in memory."""
    for count in range(1, len(indices)):
        if rule.decides(samples + count):
            return indices[:count]
    return indices


def _draw(
    sampler: Sampler, indices: range, chunk: int | None, problem: Problem
) -> tuple[Tensor, int | None]:
    """One chunk, measuring the memory of a sample the second time one is drawn alone; halved as
    often as needed when memory runs out."""
    if chunk is None and indices.start % BLOCK >= 1:
        dx, size = peak_bytes(lambda: sampler(indices))
        return dx, chunk_size(size, problem.scan.kspace.device, at_once(problem))
    try:
        return sampler(indices), chunk
    except RuntimeError as error:
        short = isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not short or len(indices) == 1:
            raise
    half = len(indices) // 2
    first, _ = _draw(sampler, indices[:half], 1, problem)
    second, _ = _draw(sampler, indices[half:], 1, problem)
    return torch.cat([first, second]), max(half, 1)


def at_once(problem: Problem) -> int | None:
    """How many samples at once suit the problem, if there is more to it than memory: where every
    batch repeats work that its samples share, larger batches pay."""
    repeats_primal = problem.linearization.strategy == "jvp"
    return problem.bound.at_once or (CPU_CAP if repeats_primal else None)


def _finished(rule: Rule, state: State, tolerance: float, error: float) -> bool:
    return tolerance > 0 and rule.decides(state.moments.samples) and error <= tolerance


def _expected(
    state: State, tolerance: float, error: float, max_passes: int | None
) -> int | None:
    if tolerance <= 0 or not math.isfinite(error):
        return max_passes
    needed = math.ceil(state.moments.samples * (error / tolerance) ** 2 / BLOCK) * BLOCK
    return needed if max_passes is None else min(needed, max_passes)
