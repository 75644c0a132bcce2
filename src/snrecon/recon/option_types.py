"""Have options the type that is meant? Those that came as text, and numbers given from Python."""

from __future__ import annotations

import math
import operator
import types
from collections.abc import Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from snrecon.errors import InputError

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def check_types(name: str, method: type, options: Mapping[str, Any]) -> None:
    """Compare numbers, booleans and text with the annotations of a constructor; whole numbers count
    as numbers. Objects are left to the constructor, and so are unknown names.

    Raises:
        InputError: naming the option and what it has to be.
    """
    hints = get_type_hints(method.__init__)  # type: ignore[misc]
    for key, value in options.items():
        if key not in hints or not isinstance(value, bool | int | float | str):
            continue
        kinds = list(dict.fromkeys(_scalars(hints[key])))
        # numpy's double is a float, and its text is a text.
        given = next(kind for kind in (bool, int, float, str) if isinstance(value, kind))
        if Any in kinds or given in kinds or (given is int and float in kinds):
            continue
        wanted = " or ".join(WORDS[kind] for kind in WORDS if kind in kinds)
        raise InputError(
            f"{key} of {name} must be {wanted}, not {value!r}." if wanted else
            f"{key} of {name} can only be given from Python, not as {value!r}."
        )


def whole_number(what: str, value: Any, least: int | None = None) -> int:
    """A whole number, numpy's included.

    Args:
        what: The option's name in errors.
        value: What was given for it.
        least: Smallest that makes sense; None: any.

    Raises:
        InputError: if it is none (2.0 is not either) or too small.
    """
    try:
        found = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = None
    if found is None or (least is not None and found < least):
        reach = "" if least is None else f" of at least {least}"
        raise InputError(f"{what} must be a whole number{reach}, not {value!r}.")
    return found


def number(what: str, value: Any) -> float:
    """A finite number; those of numpy and torch are welcome.

    Args:
        what: The option's name in errors.
        value: What was given for it.

    Raises:
        InputError: if it is none.
    """
    found = value.item() if isinstance(value, Tensor) and value.ndim == 0 else value
    try:
        if isinstance(found, Real) and not isinstance(found, bool) and math.isfinite(found):
            return float(found)
    except OverflowError:  # a whole number beyond all floats
        pass
    raise InputError(f"{what} must be a finite number, not {value!r}.")


SEEDS = 2**64
"""Seeds are below this: more bits would be lost."""


def seed_number(seed: Any) -> int:
    """A user's seed.

    Raises:
        InputError: if it is no whole number from 0 to 2^64 - 1.
    """
    if (found := whole_number("the seed", seed, 0)) >= SEEDS:
        raise InputError(f"the seed must be below 2^64, not {found}.")
    return found


def _scalars(hint: Any) -> Iterator[Any]:
    """The plain types that an annotation admits."""
    if get_origin(hint) in (Union, types.UnionType):
        for part in get_args(hint):
            yield from _scalars(part)
    elif get_origin(hint) is Literal:
        yield from (type(value) for value in get_args(hint))
    elif hint is Path:
        yield str
    elif hint is Any or hint in WORDS:
        yield hint
