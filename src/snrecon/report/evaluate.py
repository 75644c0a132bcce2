"""Scoring reconstructions, from files or made here of undersampled scans, volume by volume.

Magnitudes are compared as they are; no image is scaled to fit. Image and reference are brought to
like units by what is known, not by a fit:

- ``rss``: the root sum of squares of the fully sampled coils as stored. The image ``x`` of a method
  with coil maps ``S`` counts as ``|x| sqrt(sum_c |S_c|^2)``, the root sum of squares of the coil
  images that it stands for. The image of a method without maps is already one; where it is of
  whitened coils, so is the reference.
- ``matched``: the fully sampled data combined with the coil maps that the method used,
  ``sum conj(S) y / sum |S|^2`` of whitened coils, in the units of the method's image. Only where
  there are maps: outside their support there is no reference, and it is zero there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.io import load
from snrecon.io.images import FULL, Images, has_reference, read_images
from snrecon.metrics import score
from snrecon.physics.coverage import fully_sampled
from snrecon.physics.fourier import ifft
from snrecon.physics.masks import make_mask
from snrecon.recon.base import Bound, Reconstructor
from snrecon.recon.forward_model import NOISE
from snrecon.recon.own_network import centre_crop
from snrecon.recon.zero_filled import root_sum_of_squares
from snrecon.report.volumes import paired, scan_files

Progress = Callable[[int, int | None, str], None]
KINDS = ("rss", "matched")
REGIONS = ("full", "head")
HEAD = 0.1
"""Of the 99th percentile of the reference: what counts as head."""


@dataclass(frozen=True)
class Row:
    """Scores of one volume and what they are of."""

    volume: str
    method: str
    reference: str
    """Kind of the reference: ``rss``, ``matched``, ``esc``."""
    region: str
    slices: int
    rows: int
    columns: int
    mask: str
    """Kind of the mask; empty for finished images."""
    acceleration: float
    """True acceleration; NaN for finished images that do not say it."""
    nmse: float
    psnr: float
    ssim: float
    scale: float
    """Least-squares factor from image to reference, for information: not applied."""


def compare(
    images: str | Path,
    references: str | Path,
    *,
    reference: str | None = None,
    region: str = "full",
    progress: Progress | None = None,
) -> Iterator[Row]:
    """Scores of finished images against references, a row a volume.

    An image that is larger than its reference is cut to its central part, as fastMRI does.

    Args:
        images: A result or fastMRI reconstruction, or a folder of them.
        references: The same; of folders, files of the same name (without ending) belong together.
        reference: Kind that the references must be of; stated by fastMRI's files and by results.
        region: ``full``, or ``head``: where the reference is above a tenth of its 99th percentile.
        progress: Called as ``progress(done, total, message)``.

    Raises:
        InputError: if files are missing, damaged, do not fit, or are of another kind.
    """
    pairs = paired(Path(images), Path(references))
    _check(reference, region)
    return _compared(pairs, reference, region, progress)


def _compared(
    pairs: list[tuple[Path, Path]], kind: str | None, region: str, progress: Progress | None
) -> Iterator[Row]:
    for done, (one, other) in enumerate(pairs):
        if progress is not None:
            progress(done, len(pairs), one.name)
        image, target = read_images(one), read_images(other)
        stated = target.kind or kind
        if stated is None:
            if target.acceleration > FULL:
                raise InputError(
                    f"{other}: this is a reconstruction ({target.method}) of undersampled data, "
                    f"R = {target.acceleration:.2f}, and no reference; to score against it all the "
                    "same, say --reference rss or --reference matched."
                )
            raise InputError(
                f"{other}: this file does not say what kind of reference it holds; say it with "
                "--reference rss or --reference matched."
            )
        if kind is not None and stated != kind:
            raise InputError(
                f"{other}: the reference is of kind {stated} ({target.method}), not {kind}; leave "
                "--reference out, or give other references."
            )
        # A root sum of squares is always an image, so only the opposite mistake can be seen.
        yield _row(one.name, image.method, stated, region, "", image.acceleration, image,
                   target.values)
    if progress is not None:
        progress(len(pairs), len(pairs), "")


def reconstruct(
    scans: str | Path,
    recon: Reconstructor,
    undersample: Mapping[str, Any] | None,
    *,
    name: str = "",
    reference: str = "rss",
    region: str = "full",
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
    **reading: Any,
) -> Iterator[Row]:
    """Undersample fully sampled scans, reconstruct them and score the images, a row a volume.

    All slices and volumes of one width get the same mask. The ``rss`` reference of a fastMRI file
    is its own ``reconstruction_rss`` where it has one, otherwise computed from the k-space, as it
    always is for images of whitened coils.

    Args:
        scans: A scan, or a folder of them, of any format that ``load`` reads.
        recon: The reconstruction.
        undersample: ``kind``, ``acceleration``, ``calibration`` and ``seed`` of the mask; None
            reconstructs what is there.
        name: Name of the method in the rows.
        reference: ``rss`` or ``matched``; see the module.
        region: ``full`` or ``head``.
        progress: Called as ``progress(done, total, message)``.
        device: Where slices are reconstructed, one after the other.
        reading: ``key``, ``slice``, ``maps`` and ``noise_covariance`` of ``load``.

    Raises:
        InputError: if a scan cannot be read, is not fully sampled, or does not fit the reference.
    """
    files = scan_files(Path(scans))
    _check(reference, region)
    return _reconstructed(files, recon, undersample, name, reference, region, progress, device,
                          reading)


def _reconstructed(
    files: list[Path],
    recon: Reconstructor,
    undersample: Mapping[str, Any] | None,
    name: str,
    kind: str,
    region: str,
    progress: Progress | None,
    device: torch.device | str,
    reading: dict[str, Any],
) -> Iterator[Row]:
    for done, path in enumerate(files):
        scan = load(path, **reading)
        require_full(scan)
        mask = scan.sampled if scan.sampled.ndim == len(scan.grid) else scan.sampled.all(dim=0)
        if undersample is not None:
            options = {"calibration": None, "seed": 0, **undersample}
            mask = make_mask(options.pop("kind"), scan.grid, **options).tensor & mask
        images, targets = [], []
        for number, full in enumerate(scan):
            if progress is not None:
                progress(done, len(files), f"{path.name}, slice {number + 1} of {scan.slices}")
            image, target, white = _pair(
                recon, full.to(device), full.undersample(mask).to(device), kind)
            images.append(image.cpu())
            targets.append(target.cpu())
        values, wanted = torch.stack(images), torch.stack(targets)
        if values.ndim == 4:  # a 3D grid is scored plane by plane
            values, wanted = values[0], wanted[0]
        stored = _stored_reference(path, kind, reading)
        if white:  # of other coils than the stored one, but of the same part of the image
            for part in (stored, values):
                if part is not None:
                    shape = (min(wanted.shape[-2], part.shape[-2]),
                             min(wanted.shape[-1], part.shape[-1]))
                    wanted = centre_crop(wanted, shape)
            stored = None
        label = "none" if undersample is None else str(undersample["kind"])
        achieved = mask.numel() / int(mask.sum())
        made = Images(values, kind, name or recon.name, str(path))
        target = wanted if stored is None else stored
        yield _row(path.name, made.method, kind, region, label, achieved, made, target)
    if progress is not None:
        progress(len(files), len(files), "")


def _pair(
    recon: Reconstructor, full: Scan, part: Scan, kind: str
) -> tuple[Tensor, Tensor, bool]:
    """Image and reference ``(*grid)`` in like units, and whether these are of whitened coils."""
    with torch.no_grad():
        bound = recon.bind(part)
        image = bound(part.kspace).abs()
        if kind == "matched":
            return image, _matched(bound, full).abs(), False
        if bound.maps is not None:
            image = image * _sensitivity(bound, full)
        white = bound.maps is None and bound.units == NOISE
        kspace = full.require_noise().whiten(full.kspace) if white else full.kspace
        return image, root_sum_of_squares(kspace, full.sampled), white


def _sensitivity(bound: Bound, scan: Scan) -> Tensor:
    """``sqrt(sum_c |S_c|^2)`` of the maps in the coils as stored, ``(*grid)``."""
    assert bound.maps is not None
    maps = bound.maps if scan.noise is None else scan.noise.unwhiten(bound.maps)
    return maps.abs().square().sum(dim=0).sqrt()


def _matched(bound: Bound, full: Scan) -> Tensor:
    """``sum conj(S) y / sum |S|^2`` of fully sampled whitened coil images, ``(*grid)``."""
    if bound.maps is None:
        raise InputError(
            f"{full.source}: {bound.method} uses no coil maps, so it has no matched-filter "
            "reference; score it with --reference rss."
        )
    white = full.kspace if full.noise is None else full.noise.whiten(full.kspace)
    images = ifft(white, tuple(range(-len(full.grid), 0)))
    power = bound.maps.abs().square().sum(dim=0)
    combined = (bound.maps.conj() * images).sum(dim=0)
    return torch.where(power > 0, combined / torch.where(power > 0, power, 1), 0)


def _stored_reference(path: Path, kind: str, reading: dict[str, Any]) -> Tensor | None:
    if kind != "rss" or reading.get("key") or not has_reference(path):
        return None
    found = read_images(path)
    if found.kind != "rss":
        return None
    index = reading.get("slice")
    return found.values if index is None else found.values[index][None]


def require_full(scan: Scan) -> None:
    """Refuse scans without fully sampled references.

    Lines that are missing at the edges (zero padding) are no harm.

    Raises:
        InputError: if the scan is undersampled.
    """
    if not all(fully_sampled(mask) for mask in scan.sampled.reshape(-1, *scan.grid)):
        raise InputError(
            f"{scan.source}: the scan is undersampled (R = {scan.acceleration:.2f}), so there is "
            "no fully sampled reference to score against."
        )


def _row(
    volume: str, method: str, kind: str, region: str, mask: str, acceleration: float,
    image: Images, reference: Tensor,
) -> Row:
    values = centre(image.values, reference, f"{image.source}")
    inside = head(reference) if region == "head" else None
    try:
        found = score(values, reference, inside)
    except InputError as error:
        raise InputError(f"{image.source}: {error}") from error
    slices, rows, columns = reference.shape
    return Row(volume, method, kind, region, slices, rows, columns, mask, acceleration,
               found.nmse, found.psnr, found.ssim, found.scale)


def centre(image: Tensor, reference: Tensor, name: str) -> Tensor:
    """The central part of a volume ``(slice, ky, kx)`` that its reference shows.

    Raises:
        InputError: if the numbers of slices differ or the reference is larger.
    """
    have, want = tuple(image.shape), tuple(reference.shape)
    if have[0] != want[0] or have[1] < want[1] or have[2] < want[2]:
        raise InputError(
            f"{name}: the images are {'x'.join(map(str, have))}, the reference is "
            f"{'x'.join(map(str, want))} (slices, ky, kx): they are not of the same scan."
        )
    return centre_crop(image, (want[1], want[2]))


def head(reference: Tensor) -> Tensor:
    """Boolean: where the magnitude exceeds a tenth of its 99th percentile over the volume."""
    magnitude = reference.abs()
    return magnitude > HEAD * float(np.quantile(magnitude.numpy(), 0.99))


def _check(reference: str | None, region: str) -> None:
    if reference is not None and reference not in KINDS:
        raise InputError(f"a reference is one of {', '.join(KINDS)}, not {reference!r}.")
    if region not in REGIONS:
        raise InputError(f"a region is one of {', '.join(REGIONS)}, not {region!r}.")
