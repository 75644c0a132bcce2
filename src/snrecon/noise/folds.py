"""Streaming second moments of Jacobian products, in folds so that probes can be held out.

A sample is ``(a, b)``, the components of ``J L v`` along and across the image's phase, and where
there is a surrogate (:mod:`snrecon.noise.surrogate`) its answer ``f`` to the same probe in the same
frame. Only sums of products are kept, so memory does not depend on the number of probes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from snrecon.noise.accumulated import Accumulated, Found
from snrecon.physics.gram import boxed

FOLDS = 16
"""Probe k belongs to fold ``k mod 16``."""
REGION = "region "
"""Before the names of regions in state files."""
PLAIN = ("aa", "bb", "ab")
WITH_SURROGATE = (*PLAIN, "ar", "ai", "br", "bi", "rr", "ri", "ii")
"""Products of ``a, b`` with each other and with ``r = Re f`` and ``i = Im f``."""


@dataclass(frozen=True, eq=False)
class FoldMoments(Accumulated):
    """Sums over the samples of each fold.

    New objects, never changed ones, so that an interrupt in between leaves the old sums whole.
    """

    kind: ClassVar[str] = "folds"
    counts: Tensor
    """Samples in each fold, ``(16,)`` int64."""
    sums: dict[str, Tensor]
    """Products, each ``(16, *image)``."""
    power: Tensor | None
    """Exact variance of ``r`` and of ``i`` ``(*image)``; None without a surrogate."""
    left_out: Tensor | None = None
    """Mean square ``(*image)`` of what low precision leaves out of ``a``; None in full."""
    predicted: Tensor | None = None
    """Variance that a trained predictor expects ``(*image)``, up to a factor; None without one."""
    regions: dict[str, Tensor] = field(default_factory=dict)
    """Boolean ``(*image)``: parts of the image that get a certificate of their own."""
    adaptive: bool = False
    """Whether the number of samples follows from what they showed: a run to a tolerance."""
    _found: list[Found] = field(default_factory=list, init=False, repr=False)
    """The result, once somebody asked: a run asks for its error, and then for its map."""

    @staticmethod
    def empty(like: Tensor, power: Tensor | None = None) -> FoldMoments:
        """No samples yet, for images shaped as ``like``, in its precision."""
        real = like.real.dtype if like.is_complex() else like.dtype
        names = PLAIN if power is None else WITH_SURROGATE
        sums = {
            name: torch.zeros((FOLDS, *like.shape), dtype=real, device=like.device)
            for name in names
        }
        return FoldMoments(torch.zeros(FOLDS, dtype=torch.int64), sums, power)

    @property
    def samples(self) -> int:
        """Samples in all folds."""
        return int(self.counts.sum())

    def added(
        self, start: int, a: Tensor, b: Tensor | None, f: Tensor | None = None
    ) -> FoldMoments:
        """With samples ``start, start + 1, ...`` of a seed more.

        Args:
            start: Number of the first.
            a: Along the phase, ``(batch, *image)`` real.
            b: Across it; None for real images.
            f: Answer of the surrogate, complex; needed if there is one.
        """
        parts = {"a": a}
        if b is not None:
            parts["b"] = b
        if self.power is not None:
            assert f is not None
            parts |= {"r": f.real, "i": f.imag}
        fold = (torch.arange(a.shape[0]) + start) % FOLDS
        counts = self.counts + torch.bincount(fold, minlength=FOLDS)
        sums = {}
        for name, total in self.sums.items():
            first, second = (parts.get(letter) for letter in name)
            if first is None or second is None:
                sums[name] = total
            else:
                product = (first * second).to(total.dtype)
                sums[name] = total.index_add(0, fold.to(total.device), product)
        return replace(self, counts=counts, sums=sums)

    def merged(self, other: FoldMoments) -> FoldMoments:
        """The sums of both, of independent samples of the same problem."""
        sums = {name: total + other.sums[name] for name, total in self.sums.items()}
        left_out = self.left_out
        if other.left_out is not None:
            left_out = other.left_out if left_out is None else torch.maximum(
                left_out, other.left_out)
        return replace(self, counts=self.counts + other.counts, sums=sums, left_out=left_out,
                       adaptive=self.adaptive or other.adaptive)

    def to(self, device: torch.device) -> FoldMoments:
        """The same on another device."""
        sums = {name: total.to(device) for name, total in self.sums.items()}
        power = None if self.power is None else self.power.to(device)
        left_out = None if self.left_out is None else self.left_out.to(device)
        predicted = None if self.predicted is None else self.predicted.to(device)
        regions = {name: region.to(device) for name, region in self.regions.items()}
        return replace(self, sums=sums, power=power, left_out=left_out, predicted=predicted,
                       regions=regions)

    def cropped(self, box: tuple[slice, ...]) -> FoldMoments:
        """Of a part of the image only."""
        def part(whole: Tensor | None) -> Tensor | None:
            return None if whole is None else whole[box]

        sums = {name: boxed(total, box) for name, total in self.sums.items()}
        regions = {name: region[box] for name, region in self.regions.items()}
        return replace(self, sums=sums, power=part(self.power), left_out=part(self.left_out),
                       predicted=part(self.predicted), regions=regions)

    def result(self, image: Tensor) -> Found:
        """The map with its certificate (:mod:`snrecon.noise.certificate`)."""
        from snrecon.noise.certificate import fold_result  # which needs the folds

        if not self._found:
            self._found.append(fold_result(self, image))
        return self._found[0]

    def arrays(self) -> dict[str, Tensor]:
        """Sums, counts and what is known besides."""
        known = {"counts": self.counts, "power": self.power, "left_out": self.left_out,
                 "predicted": self.predicted,
                 "adaptive": torch.ones(1, dtype=torch.bool) if self.adaptive else None}
        # A slash would make a folder in the file.
        regions = {f"{REGION}{name.replace('%', '%25').replace('/', '%2F')}": region
                   for name, region in self.regions.items()}
        return self.sums | regions | {k: part for k, part in known.items() if part is not None}

    @classmethod
    def restored(cls, arrays: dict[str, Tensor], attributes: dict[str, Any]) -> FoldMoments:
        """From a state file."""
        power = arrays.get("power")
        names = PLAIN if power is None else WITH_SURROGATE
        sums = {name: arrays[name] for name in names}
        regions = {name.removeprefix(REGION).replace("%2F", "/").replace("%25", "%"): array
                   for name, array in arrays.items() if name.startswith(REGION)}
        return FoldMoments(arrays["counts"], sums, power, arrays.get("left_out"),
                           arrays.get("predicted"), regions, "adaptive" in arrays)

    def part(self, folds: list[int]) -> Means:
        """Mean products over some folds."""
        count = sum(int(self.counts[k]) for k in folds)
        if len(folds) == 1:
            means = {name: total[folds[0]] / max(count, 1) for name, total in self.sums.items()}
            return Means(count, means, self.power)
        share = torch.zeros(FOLDS, dtype=torch.float64)
        share[folds] = 1 / max(count, 1)
        means = {
            name: torch.tensordot(share.to(total), total, 1) for name, total in self.sums.items()
        }
        return Means(count, means, self.power)


@dataclass(frozen=True, eq=False)
class Means:
    """Mean products of some samples."""

    count: int
    products: dict[str, Tensor]
    power: Tensor | None

    def together(self, other: Means) -> Means:
        """Of both, of different samples."""
        count = self.count + other.count
        share = self.count / max(count, 1)
        products = {name: torch.lerp(other.products[name], mean, share)
                    for name, mean in self.products.items()}
        return Means(count, products, self.power)
