"""Which pixels of a fully sampled scan hold noise and nothing else."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.physics.calibration import calibration_lines, calibration_region
from snrecon.physics.fourier import grid_axes, ifft

ADVICE = (
    "give the noise covariance with --noise-covariance FILE (or 'identity' if the data are already "
    "whitened)."
)
TILES = 32
"""About so many tiles along each image axis."""
SMALL = 96
"""Grids with fewer points than this along an image axis get tiles of at least TILE_SAMPLES."""
TILE_SAMPLES = 32
"""Fewest samples (pixels times coils) of a tile of a small grid."""
WIDTH = 3.5
"""Half-width, in standard deviations of a tile's mean, of the band that counts as noise."""
FEWEST_TILES = 4
"""Fewest tiles of a readout position that establish its noise level."""
SMALLEST_SHARE = 0.1
"""Smallest share of the tiles of a readout position that does."""
UNEVENNESS = 0.04
"""Relative spread of noise energy between tiles that is allowed beside the statistical one."""
SMOOTHNESS = 0.15
"""Largest correlation between neighbouring rows; noise has none, images have most of 1."""
ANISOTROPY = 1.5
"""Strongest direction in coil space, relative to the strongest that white noise has."""
MOST_PLANES = 16
"""Most slices (or kz planes) looked at."""


def sampled_fraction(mask: Tensor, layout: str = "grid") -> float:
    """Share of the grid that is sampled, for a scan whose images are free of aliasing.

    That is: fully sampled, or fully sampled in one central block (zero-filled interpolation,
    partial Fourier), or with a few points missing.

    Raises:
        InputError: for an undersampled scan.
    """
    grid_mask = mask
    if layout == "stack" and mask.ndim == 3:
        grid_mask = mask[0]
        if not torch.equal(mask, grid_mask.expand_as(mask)):
            grid_mask = mask.all(dim=0)
    fraction = float(grid_mask.double().mean())
    if fraction > 0.95:
        return fraction
    central = fraction > 0.25 and 0 not in calibration_lines(grid_mask)
    region = calibration_region(grid_mask) if central else None
    if region is not None and int(grid_mask[region].numel()) == int(grid_mask.sum()):
        return fraction
    raise InputError(
        "noise cannot be measured in the background of an undersampled scan (acceleration "
        f"{1 / max(fraction, 1e-9):.3g}), for aliased signal lies there: {ADVICE}"
    )


def coil_planes(kspace: Tensor, layout: str = "grid") -> Tensor:
    """Coil images as ``(plane, coil, y, x)``; of many planes an even selection."""
    stacked = layout == "stack"
    if stacked:
        count = kspace.shape[0]
        planes = kspace
    elif kspace.ndim == 4:
        # The transform along kz is needed for all planes; along the others for the chosen ones.
        planes = ifft(kspace, (-3,)).movedim(1, 0)
        count = planes.shape[0]
    else:
        planes, count = kspace.unsqueeze(0), 1
    if count > MOST_PLANES:
        planes = planes[torch.linspace(0, count - 1, MOST_PLANES).round().long()]
    return ifft(planes, grid_axes(2))


def background_pixels(planes: Tensor, fraction: float = 1.0) -> Tensor:
    """Pixels ``(plane, y, x)`` that hold noise only; all False when there are none.

    Args:
        planes: Coil images ``(plane, coil, y, x)``.
        fraction: Sampled share of k-space; noise of neighbouring pixels is correlated below 1.

    Raises:
        InputError: if a coil has no signal and no noise at all.
    """
    tiles = _Tiles(planes.shape[-2], planes.shape[-1], planes.shape[1], planes.device)
    whitening = torch.diag(_first_scales(planes, tiles)).to(planes)
    spread = 2.5  # until the noise is whitened, correlated coils widen the spread of a tile's mean
    chosen = torch.zeros(planes.shape[0], tiles.rows, tiles.columns, dtype=torch.bool,
                         device=planes.device)
    for _ in range(4):
        white = torch.einsum("ab,pbyx->payx", whitening, planes)
        chosen, level = _noise_tiles(white, tiles, fraction, spread)
        pixels = tiles.pixels(chosen)
        if int(pixels.sum()) < 4 * planes.shape[1]:
            return torch.zeros_like(pixels)
        values = planes.movedim(1, -1)[pixels].to(torch.complex128)
        weight = 1 / level[tiles.column_of][pixels.nonzero()[:, -1]].double()
        covariance = torch.einsum("n,na,nb->ab", weight.to(values), values, values.conj())
        lower, failed = torch.linalg.cholesky_ex(covariance / len(values))
        if int(failed):
            return torch.zeros_like(pixels)
        eye = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
        whitening = torch.linalg.solve_triangular(lower, eye, upper=False).to(planes)
        spread = 1.0
    return tiles.pixels(chosen)


class _Tiles:
    """Division of planes ``(plane, y, x)`` into about 32 x 32 rectangular tiles, small grids fewer.

    The mean of a few samples spreads so widely that the lowest level merges with weak signal.
    """

    def __init__(self, height: int, width: int, coils: int, device: torch.device) -> None:
        edge = 2
        if min(height, width) < SMALL:
            edge = max(edge, math.ceil(math.sqrt(TILE_SAMPLES / coils)))
        self.rows = max(1, min(TILES, height // edge))
        self.columns = max(1, min(TILES, width // edge))
        self.row_of = torch.arange(height, device=device) * self.rows // height
        self.column_of = torch.arange(width, device=device) * self.columns // width
        ones = torch.ones(1, height, width, dtype=torch.float64, device=device)
        self.count = self._sum(ones)[0]

    def _sum(self, values: Tensor) -> Tensor:
        by_row = torch.zeros(*values.shape[:-2], self.rows, values.shape[-1], dtype=values.dtype,
                             device=values.device).index_add(-2, self.row_of, values)
        result = torch.zeros(*by_row.shape[:-1], self.columns, dtype=values.dtype,
                             device=values.device)
        return result.index_add(-1, self.column_of, by_row)

    def mean(self, values: Tensor) -> Tensor:
        """``(..., y, x)`` to ``(..., row, column)``, double precision."""
        return self._sum(values.double()) / self.count

    def pixels(self, tiles: Tensor) -> Tensor:
        """``(..., row, column)`` to ``(..., y, x)``."""
        return tiles[..., self.row_of, :][..., self.column_of]


def _first_scales(planes: Tensor, tiles: _Tiles) -> Tensor:
    """One over a rough noise SD of each coil: the root of a low quantile of its tiles' energies."""
    energy = tiles.mean(planes.abs().square()).movedim(1, 0).flatten(1)
    low = energy.quantile(0.1, dim=1) if energy.shape[1] < 2**24 else energy[:, ::16].quantile(0.1)
    if not bool((low > 0).all()):
        dead = int((low <= 0).nonzero()[0])
        raise InputError(
            f"coil {dead} shows no noise in the background (it may be dead, or the images masked): "
            f"{ADVICE}"
        )
    return low.rsqrt()


def _noise_tiles(
    white: Tensor, tiles: _Tiles, fraction: float, spread: float
) -> tuple[Tensor, Tensor]:
    """Tiles ``(plane, row, column)`` of noise and the noise level ``(column,)``."""
    coils = white.shape[1]
    energy = tiles.mean(white.abs().square().mean(1))
    statistical = spread / (coils * tiles.count * fraction).sqrt()
    deviation = (statistical**2 + UNEVENNESS**2).sqrt()  # relative SD of a noise tile
    # Signal is smooth, noise is not: correlation of neighbouring rows.
    neighbour = (white.conj() * white.roll(-1, dims=-2)).real.mean(1)
    correlation = tiles.mean(neighbour)

    chosen = torch.zeros_like(energy, dtype=torch.bool)
    level = torch.ones(tiles.columns, dtype=energy.dtype, device=energy.device)
    for column in range(tiles.columns):
        inside, mean = _lowest_cluster(energy[..., column], deviation[:, column])
        beside = energy[..., column] > mean * (1 + WIDTH * deviation[:, column])
        inside &= ~(beside.roll(1, -1) | beside.roll(-1, -1))  # signal leaks to its neighbours
        if int(inside.sum()) < FEWEST_TILES:
            continue
        pixels = float((tiles.count[:, column] * inside).sum())
        if fraction > 0.95 and spread == 1:
            related = float((correlation[..., column] * tiles.count[:, column])[inside].sum())
            if related / pixels > mean * (SMOOTHNESS + 4 / (2 * coils * pixels) ** 0.5):
                continue
        if spread == 1 and not _isotropic(white, tiles, inside, column, float(mean), fraction):
            continue
        chosen[..., column] = inside
        level[column] = mean
    return _consistent_rows(energy / level, chosen, tiles, fraction, coils, spread), level


def _lowest_cluster(energy: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Tiles ``(plane, row)`` that share the lowest common level within their spread; that level.

    Mean shift, from the lowest tiles upwards until enough tiles are found; the band is two-sided,
    so its mean is unbiased.
    """
    ordered = energy.flatten().sort().values
    enough = max(FEWEST_TILES, SMALLEST_SHARE * len(ordered))
    inside = torch.zeros_like(energy, dtype=torch.bool)
    mean = ordered[0]
    for start in range(0, len(ordered), max(1, len(ordered) // 16)):
        mean = ordered[start : start + 3].mean()
        for _ in range(30):
            band = (energy / mean - 1).abs() < WIDTH * deviation
            if torch.equal(band, inside) or not bool(band.any()):
                break
            inside, mean = band, energy[band].mean()
        if int(inside.sum()) >= enough:
            return inside, mean
    return torch.zeros_like(inside), mean


def _isotropic(
    white: Tensor, tiles: _Tiles, inside: Tensor, column: int, level: float, fraction: float
) -> bool:
    """No direction in coil space is stronger than in white noise (edge of Marchenko and Pastur)."""
    coils = white.shape[1]
    rows = inside[:, tiles.row_of]  # (plane, y)
    block = white[..., tiles.column_of == column].movedim(1, -1)[rows].reshape(-1, coils)
    strongest = torch.linalg.eigvalsh(block.mH @ block)[-1] / (len(block) * level)
    edge = (1 + (coils / (len(block) * fraction)) ** 0.5) ** 2
    return float(strongest) < ANISOTROPY * edge


def _consistent_rows(
    energy: Tensor, chosen: Tensor, tiles: _Tiles, fraction: float, coils: int, spread: float
) -> Tensor:
    """Leave out whole rows of tiles whose mean over the chosen tiles is off: ghosts are wide."""
    pixels = (tiles.count * chosen).sum(-1)  # (plane, row)
    total = (tiles.count * energy * chosen).sum(-1)
    used = pixels > 0
    if int(used.sum()) < FEWEST_TILES:
        return chosen
    mean = total / pixels.clamp_min(1)
    deviation = spread / (coils * fraction * pixels.clamp_min(1)).sqrt() + 0.01
    centre = mean[used].median()
    for _ in range(20):
        good = used & ((mean / centre - 1).abs() < WIDTH * deviation)
        if not bool(good.any()):
            return chosen
        centre = total[good].sum() / pixels[good].sum()
    return chosen & good.unsqueeze(-1)
