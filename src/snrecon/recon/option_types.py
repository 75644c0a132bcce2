"""Options of a method that came as text: have they the type that its constructor states?"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

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
        given = type(value)
        if Any in kinds or given in kinds or (given is int and float in kinds):
            continue
        wanted = " or ".join(WORDS[kind] for kind in WORDS if kind in kinds)
        raise InputError(
            f"{key} of {name} must be {wanted}, not {value!r}." if wanted else
            f"{key} of {name} can only be given from Python, not as {value!r}."
        )


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
