"""Schemes that learn a prior from images alone: what they are shown."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from snrecon.training.config import Config
from snrecon.training.loop import Loop, Progress
from snrecon.training.measured import Measured
from snrecon.training.simulate import smooth_phase, tissue_phase
from snrecon.training.stream import Found, check_mask_grids, find_data, image_pools

BRIGHTNESS = 0.99
"""Quantile of the magnitudes of an image that becomes about 1."""
LOUDER = 0.25
"""Images are brighter or darker than that by up to this share: no measured scale is exact."""
VALIDATION = 12345
"""Seed of what is drawn from the validation data."""


class Images:
    """Draws batches of real images ``(batch, ky, kx)``, magnitudes in about [0, 1].

    Args:
        config: The run: grids and pool of ``[simulation]``, what is drawn by ``[prior]``.
        found: The images, or measured scans, whose matched-filter magnitudes are taken.
        seed: Of the pool.
        count: Images in it.
    """

    def __init__(self, config: Config, found: Found, seed: int, count: int) -> None:
        settings = config.simulation
        self.signed = config.prior.signed
        if found.volumes:
            check_mask_grids(config, found)
        self.grids = [(int(rows), int(columns)) for rows, columns in settings.grids]
        self.scans = (Measured(found.volumes, settings, seed, 1.0, config.data.columns, "all")
                      if found.volumes else None)
        self.pools = {} if found.volumes else image_pools(found.images, settings, count, seed)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Images of one grid; what is drawn comes from the generator."""
        magnitudes = self._magnitudes(count, generator)
        return torch.stack([self._image(one, generator) for one in magnitudes])

    def _magnitudes(self, count: int, generator: torch.Generator) -> Tensor:
        if self.scans is not None:
            index = int(torch.randint(2**31, (), generator=generator))
            return self.scans.draw(index, count).target.abs()
        grid = self.grids[int(torch.randint(len(self.grids), (), generator=generator))]
        pool = self.pools[max(grid)]
        chosen = torch.randint(pool.shape[0], (count,), generator=generator)
        rows, columns = ((max(grid) - n) // 2 for n in grid)
        return pool[chosen, rows : rows + grid[0], columns : columns + grid[1]]

    def _image(self, picture: Tensor, generator: torch.Generator) -> Tensor:
        def uniform(low: float, high: float) -> float:
            return low + (high - low) * float(torch.rand((), generator=generator))

        picture = picture.abs()
        image = picture / picture.flatten().quantile(BRIGHTNESS).clamp_min(1e-6)
        image = image * uniform(1 - LOUDER, 1 + LOUDER)
        axes = [axis for axis in (-2, -1) if uniform(0, 1) < 0.5]
        image, picture = image.flip(axes), picture.flip(axes)
        if uniform(0, 1) < self.signed:
            grid = (int(image.shape[0]), int(image.shape[1]))
            phase = smooth_phase(grid, generator) + uniform(-3.1416, 3.1416)
            image = image * torch.cos(phase + tissue_phase(picture, generator))
        return image


class PriorLoop(Loop):
    """A training on images.

    Args:
        config: The run.
        mixed: Convolutions in bfloat16.

    Raises:
        InputError: if the data cannot be read.
    """

    def __init__(self, config: Config, mixed: bool) -> None:
        super().__init__(config, mixed)
        found = find_data(config, "train")
        self.check(found)
        self.images = Images(config, found, config.trainer.seed, config.simulation.pool)
        self.held_out: Tensor | None = None
        if config.data.validation:
            found = find_data(config, "validation")
            self.check(found)
            others = Images(config, found, VALIDATION, 32)
            generator = torch.Generator().manual_seed(VALIDATION)
            self.held_out = others.draw(16, generator)

    def check(self, found: Found) -> None:
        """Whether the network can learn from these data.

        Raises:
            InputError: if it cannot.
        """


def train_prior(config: Config, mixed: bool, *, resume: bool, progress: Progress | None) -> Path:
    """Train the prior that a configuration describes; see :func:`snrecon.training.train`."""
    from snrecon.training.autoencoder import Autoencoding
    from snrecon.training.score_matching import ScoreMatching

    def tell(share: float, message: str) -> None:
        if progress is not None:
            progress(int(1000 * share), 1000, message)

    kind = {"score_matching": ScoreMatching, "autoencoder": Autoencoding}[config.scheme]
    return kind(config, mixed).run(resume, tell)
