"""Sampling patterns as text: every sample is where it should be."""

from __future__ import annotations

import pytest
import torch

from snrecon.report import mask_picture
from snrecon.report.mask_picture import COLUMNS, ROWS


def strip_to_lines(picture: str) -> list[bool]:
    """The inverse of the strip of half blocks."""
    marks = {" ": (0, 0), "▌": (1, 0), "▐": (0, 1), "█": (1, 1)}
    text = "".join(line[1:-1] for line in picture.splitlines())
    return [bool(m) for character in text for m in marks[character]]


def dots_to_mask(picture: str) -> torch.Tensor:
    """The inverse of braille dots."""
    rows = picture.splitlines()
    mask = torch.zeros(4 * len(rows), 2 * len(rows[0]), dtype=torch.bool)
    bits = {(0, 0): 0, (1, 0): 1, (2, 0): 2, (0, 1): 3, (1, 1): 4, (2, 1): 5, (3, 0): 6, (3, 1): 7}
    for r, row in enumerate(rows):
        for c, character in enumerate(row):
            code = ord(character) - 0x2800
            for (dr, dc), bit in bits.items():
                mask[4 * r + dr, 2 * c + dc] = bool(code >> bit & 1)
    return mask


@pytest.mark.parametrize("count", [7, 64, 144, 145, 301])
def test_every_line_of_a_one_dimensional_mask(count: int, generator: torch.Generator) -> None:
    lines = torch.rand(count, generator=generator) < 0.3
    lines[:2] = torch.tensor([True, False])
    picture = mask_picture(lines[:, None].expand(count, 5))
    assert strip_to_lines(picture)[:count] == lines.tolist()
    assert max(map(len, picture.splitlines())) <= COLUMNS + 2
    plain = mask_picture(lines[:, None].expand(count, 5), encoding="ascii")
    text = "".join(line[1:-1] for line in plain.splitlines())
    assert [c == "|" for c in text] == lines.tolist()


def test_every_sample_of_a_two_dimensional_mask(generator: torch.Generator) -> None:
    mask = torch.rand(50, 37, generator=generator) < 0.4
    shown = dots_to_mask(mask_picture(mask))
    assert torch.equal(shown[:50, :37], mask)
    assert not bool(shown[50:].any())


def test_a_volume_shows_its_phase_encoding_plane(generator: torch.Generator) -> None:
    plane = torch.rand(12, 20, generator=generator) < 0.4
    mask = plane[:, :, None].expand(12, 20, 9)
    assert torch.equal(dots_to_mask(mask_picture(mask))[:12, :20], plane)


def test_large_masks_become_densities(generator: torch.Generator) -> None:
    mask = torch.rand(512, 400, generator=generator) < 0.2
    mask[:256] = False
    for encoding, full in (("utf-8", "█"), ("ascii", "#")):
        mask[-64:] = True
        rows = mask_picture(mask, encoding).splitlines()
        assert len(rows) <= ROWS
        assert all(len(row) <= COLUMNS for row in rows)
        assert set("".join(rows[: len(rows) // 2 - 1])) == {" "}
        assert set(rows[-1]) == {full}


def test_a_full_mask_needs_no_picture() -> None:
    assert mask_picture(torch.ones(8, 8, dtype=torch.bool)) == ""
