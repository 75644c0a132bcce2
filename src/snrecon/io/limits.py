"""How much a file may ask for: declared sizes are checked before anything is allocated."""

from __future__ import annotations

import os
from pathlib import Path

from snrecon.errors import InputError

BOMB_BYTES = 256 * 2**20
"""Arrays below this size are read however well they compress."""
BOMB_RATIO = 100
"""Larger arrays that compress better than this hold no measured data."""


def memory_limit() -> int:
    """Largest array to read, bytes: half of the machine's memory."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):  # not on this platform
        return 8 * 2**30


def check_size(declared: int, stored: int, what: str) -> None:
    """Refuse arrays that do not fit into memory or expand from almost nothing.

    Args:
        declared: Size of the array in memory, bytes.
        stored: Size of the same array in the file, bytes.
        what: Names the file and the array in the message.

    Raises:
        InputError: if the array is too large for this machine, or a decompression bomb.
    """
    if declared > memory_limit():
        raise InputError(
            f"{what} declares {declared / 2**30:.1f} GiB, more than half of this machine's memory; "
            "the file is damaged or must be cut into parts."
        )
    if declared > BOMB_BYTES and declared > BOMB_RATIO * max(stored, 1):
        raise InputError(
            f"{what} expands {declared // max(stored, 1)}-fold to {declared / 2**20:.0f} MiB: "
            "it holds no measured data or is damaged."
        )


def regular_file(path: str | Path) -> Path:
    """The path of an existing, readable, non-empty regular file.

    Raises:
        InputError: for anything else, saying what it is.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise InputError(f"{path}: there is no such file.")
        if path.is_dir():
            raise InputError(f"{path}: this is a folder; name a file in it.")
        if not path.is_file():
            raise InputError(f"{path}: this is not a regular file.")
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty.")
        with path.open("rb"):
            pass
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: the file cannot be read ({reason(error)}).") from error
    return path


def reason(error: BaseException) -> str:
    """The cause of a library's error, on one line and without its file name."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:160].rstrip(".")


def listing(names: list[str]) -> str:
    """Names for a message, at most twelve."""
    shown = ", ".join(n[:60] for n in sorted(names)[:12]) or "no arrays"
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")
