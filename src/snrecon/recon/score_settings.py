"""Options of the score samplers: what they mean together, and which make no sense."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from snrecon.errors import InputError
from snrecon.recon.coil_diffusion import ALGORITHMS
from snrecon.recon.diffusion import geometric_levels
from snrecon.recon.option_types import number, whole_number

NAMES = {"real": "2", "complex": "3", "ssos": "4", "hybrid": "5"}
DDS_STEPS = 50
DDS_START = 5.0
"""Level at which dds begins: far above the errors of its first image, so that nothing of them is
left, and far below the levels at which a score sees noise only."""
COME_CLOSER = 0.2
"""Level added to a reconstruction begun from: above its errors, in images of size 1."""


@dataclass(frozen=True)
class Settings:
    """Checked options of :class:`snrecon.recon.score.Score`, which explains them.

    Raises:
        InputError: for a value out of range.
    """

    algorithm: str
    steps: int | None
    corrector_steps: int
    snr: float
    m: int | None
    lambda_start: float
    lambda_end: float
    as_published: bool
    started: bool
    """Another reconstruction is begun from."""
    start_sigma: float | None
    cg_steps: int
    eta: float
    demodulate: bool
    scale: float | None
    coils: int | None
    at_once: int
    known: tuple[float, float]
    """Smallest and largest noise level of the score."""

    def __post_init__(self) -> None:
        named = NAMES.get(str(self.algorithm), str(self.algorithm))
        object.__setattr__(self, "algorithm", named)
        if named not in (*ALGORITHMS, "dds"):
            raise InputError(
                "the algorithm of score is dds, 2 (real), 3 (complex), 4 (ssos) or 5 (hybrid), not "
                f"{self.algorithm!r}."
            )
        for what, value, least in (
            ("steps", self.steps, 1), ("corrector_steps", self.corrector_steps, 0),
            ("m", self.m, 1), ("cg_steps", self.cg_steps, 1), ("coils", self.coils, 1),
            ("at_once", self.at_once, 1),
        ):
            if value is not None:
                object.__setattr__(self, what, whole_number(f"{what} of score", value, least))
        for what in ("snr", "scale", "start_sigma", "lambda_start", "lambda_end", "eta"):
            if (size := getattr(self, what)) is not None:
                object.__setattr__(self, what, number(f"{what} of score", size))
        for what, size in (("snr", self.snr), ("scale", self.scale),
                           ("start_sigma", self.start_sigma)):
            if size is not None and size <= 0:
                raise InputError(f"{what} of score must be positive, not {size}.")
        for what, weight in (("lambda_start", self.lambda_start), ("lambda_end", self.lambda_end)):
            if not 0 <= weight < 2:
                raise InputError(
                    f"{what} of score must be at least 0 and below 2, where the SENSE step begins "
                    f"to diverge, not {weight}."
                )
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta of score must lie between 0 and 1, not {self.eta}.")
        if self.as_published and self.algorithm == "dds":
            raise InputError("as_published is for the algorithms 2 to 5 of score.")
        low, high = self.known
        if self.start_sigma is not None and not low <= self.start_sigma <= high:
            raise InputError(
                f"start_sigma of score must lie between {low:g} and {high:g}, the noise levels "
                f"that the score knows, not {self.start_sigma:g}."
            )

    @property
    def stated(self) -> dict[str, Any]:
        """What decides the sample, by name: all but how many images are computed together."""
        return {name: value for name, value in asdict(self).items() if name != "at_once"}

    @property
    def levels(self) -> list[float]:
        """Noise levels in falling order."""
        low, high = self.known
        begin = self.start_sigma
        if begin is None and self.started:
            begin = COME_CLOSER
        elif begin is None:
            begin = DDS_START if self.algorithm == "dds" else high
        begin = min(max(begin, low), high)
        steps = self.steps
        if steps is None:
            dds = self.algorithm == "dds"
            steps = DDS_STEPS if dds else ALGORITHMS[self.algorithm].steps
            whole = min(DDS_START, high) if dds else high
            if self.started and begin < whole:
                steps = max(1, round(steps * math.log(begin / low) / math.log(whole / low)))
        return geometric_levels(begin, low, steps)

    @property
    def sense_every(self) -> int:
        """Levels from one SENSE step to the next."""
        return self.m if self.m is not None else max(1, len(self.levels) // 10)
