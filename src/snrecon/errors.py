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
def naming(source: str) -> Iterator[None]:
    """Put the name of what is at fault before the sentences raised within that lack it.

    Args:
        source: File or description, as in ``Scan.source``.

    Raises:
        InputError: the one raised within, beginning with ``source`` unless it names it already.
    """
    try:
        yield
    except MissingExtraError:  # the installation is at fault, not the file
        raise
    except InputError as error:
        if f"{source}:" in str(error):
            raise
        raise InputError(f"{source}: {error}") from error
