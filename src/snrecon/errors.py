"""What goes wrong, in words a user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """The input is at fault: one plain sentence saying what was wrong and what to do.

    The command line prints the sentence and ends with exit code 2.
    """


class MissingExtraError(InputError, ImportError):
    """An optional library is absent; the message names the ``pip install`` that brings it."""

    def __init__(self, purpose: str, extra: str) -> None:
        super().__init__(f"{purpose} needs an optional library: pip install 'snrecon[{extra}]'.")


class SnreconWarning(UserWarning):
    """Something the user should know about the result, which is still usable."""


@contextmanager
def naming(source: str, part: str = "") -> Iterator[None]:
    """Put the name of what is at fault before the sentences raised within that lack it.

    Args:
        source: File or description, as in ``Scan.source``.
        part: Of it, such as a slice.

    Raises:
        InputError: the one raised within, beginning with ``source`` unless it names it already, and
            with the part.
    """
    place = f"{source}, {part}" if part else source
    try:
        yield
    except MissingExtraError:  # the installation is at fault, not the file
        raise
    except InputError as error:
        text = str(error)
        if f"{source}:" not in text:
            raise InputError(f"{place}: {text}") from error
        if not part:
            raise
        raise InputError(text.replace(f"{source}:", f"{place}:", 1)) from error
