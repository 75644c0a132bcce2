"""What goes wrong, in words a user can act on."""

from __future__ import annotations


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
