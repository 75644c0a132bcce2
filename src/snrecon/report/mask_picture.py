"""A sampling pattern as a small picture of text."""

from __future__ import annotations

import torch
from torch import Tensor

from snrecon.physics.gram import varying_axes

ROWS, COLUMNS = 32, 72
"""Largest picture, characters."""
_BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_HALVES = (" ", "▌", "▐", "█")  # columns (left, right)
_SHADES = " ░▒▓█"
_PLAIN_SHADES = " .:*#"


def mask_picture(mask: Tensor, encoding: str = "utf-8") -> str:
    """Draw a boolean mask ``(*grid)``; k-space centre in the middle.

    A mask that varies along one axis is a strip with one mark a line; one that varies along two
    axes is a picture in which every sample is a dot, or, where it would not fit, shades of the
    local sampling density. Falls back to ASCII where ``encoding`` has no block characters.
    """
    axes = varying_axes(mask)
    unicode = _can_encode(encoding)
    if len(axes) == 0:
        return ""
    plane = mask
    for axis in range(-mask.ndim, 0):
        if axis not in axes:
            plane = plane.narrow(axis, mask.shape[axis] // 2, 1)
    if len(axes) == 3:
        plane = plane.select(-1, mask.shape[-1] // 2)
    plane = plane.squeeze() if len(axes) < 3 else plane
    if plane.ndim == 1:
        return _strip(plane, unicode)
    if unicode and plane.shape[0] <= 4 * ROWS and plane.shape[1] <= 2 * COLUMNS:
        return _dots(plane)
    return _density(plane, _SHADES if unicode else _PLAIN_SHADES)


def _can_encode(encoding: str) -> bool:
    try:
        "⣿█░▌".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _strip(lines: Tensor, unicode: bool) -> str:
    """One mark a line, wrapped to rows."""
    marks = lines.tolist()
    if unicode:
        marks += [False] * (len(marks) % 2)
        pairs = zip(marks[::2], marks[1::2], strict=True)
        text = "".join(_HALVES[int(left) + 2 * int(right)] for left, right in pairs)
    else:
        text = "".join("|" if m else "." for m in marks)
    rows = -(-len(text) // COLUMNS)
    width = -(-len(text) // rows)
    parts = [text[i : i + width] for i in range(0, len(text), width)]
    return "\n".join(f"[{part}]" for part in parts)


def _dots(plane: Tensor) -> str:
    """Every sample a dot of a braille character (4 rows x 2 columns)."""
    rows, columns = plane.shape
    padded = torch.zeros(-(-rows // 4) * 4, -(-columns // 2) * 2, dtype=torch.bool)
    padded[:rows, :columns] = plane
    weights = torch.tensor(_BRAILLE)
    cells = padded.reshape(-1, 4, padded.shape[1] // 2, 2) * weights[None, :, None, :]
    codes = cells.sum(dim=(1, 3)) + 0x2800
    return "\n".join("".join(map(chr, row)) for row in codes.tolist())


def _density(plane: Tensor, shades: str) -> str:
    """Share of sampled points in every character's cell, rounded up to the next shade."""
    rows, columns = min(ROWS, plane.shape[0]), min(COLUMNS, plane.shape[1])
    # A character is about twice as high as wide.
    shrink = max(plane.shape[0] / (rows * 2), plane.shape[1] / columns, 0.5)
    rows = max(1, min(rows, round(plane.shape[0] / shrink / 2)))
    columns = max(1, min(columns, round(plane.shape[1] / shrink)))
    share = torch.nn.functional.adaptive_avg_pool2d(plane[None].double(), (rows, columns))[0]
    level = torch.ceil(share * (len(shades) - 1)).int()
    return "\n".join("".join(shades[i] for i in row) for row in level.tolist())
