"""One noise map from the states of several runs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from snrecon.data import NoiseMap
from snrecon.errors import InputError, SnreconWarning
from snrecon.noise.estimate import stacked
from snrecon.noise.state import load_states, stack_of


def merge(paths: Sequence[str | Path]) -> NoiseMap:
    """Merge state files of the same scan, method and estimator with different seeds.

    Args:
        paths: Two or more state files (one is allowed: it becomes a result).

    Returns:
        The noise map; its ``seed`` is the smallest of the seeds, ``details["seeds"]`` has all of
        them with their passes.

    Raises:
        InputError: if a file is no state, they do not belong together, or share a seed.
    """
    if not paths:
        raise InputError("no state files were given to merge.")
    merged = load_states(Path(paths[0]))
    for path in paths[1:]:
        other = load_states(Path(path))
        if set(other) != set(merged):
            raise InputError(f"{path}: this state has other slices than {paths[0]}.")
        try:
            merged = {index: merged[index].merged(other[index]) for index in merged}
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    if any(state.header["estimator"] == "exact" for state in merged.values()):
        raise InputError(f"{paths[0]}: this is a state of exact rows; run it to its end instead.")
    results = [merged[index].result() for index in sorted(merged)]
    stack = stack_of(Path(paths[0]))
    if stack is not None and len(results) < stack.slices:
        warnings.warn(f"{paths[0]}: the state has {len(results)} of {stack.slices} slices; run it "
                      "on to get the others.", SnreconWarning, stacklevel=2)
    whole = len(results) == 1 and (stack is None or stack.layout == "grid")
    return results[0] if whole else stacked(results)
