"""Scheme ``noise_predictor``: a small network learns the noise of one fixed reconstruction."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from snrecon.training.config import Config, TrainerConfig
from snrecon.training.loop import Item, Loop, Progress, Source, step_generator
from snrecon.training.measured import Measured
from snrecon.training.noise_labels import Label, fingerprint, labels, reconstruction
from snrecon.training.stream import find_data, training_source, validation_simulator

VALIDATION = 12
"""Validation measurements."""
OTHERS = 12345
"""Seed of what is drawn from the validation data."""


def gamma_loss(eta: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Negative log-likelihood of gamma-distributed labels with mean ``exp(eta)``, a mean weighted
    over voxels for each item ``(batch,)``; its minimum is the labels' expectation, whatever their
    distribution, also where a label is negative."""
    each = (target * torch.exp(-eta) + eta) * weight
    return each.flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1e-6)


def sigma_error(eta: Tensor, halves: Tensor, weight: Tensor) -> float:
    """Relative RMS error of a predicted sigma over voxels with signal, after the best common
    factor; from two independent sketches, so that their own scatter does not count.

    Args:
        eta: Logarithm of the predicted variance, ``(ky, kx)``.
        halves: ``(2, ky, kx)`` in the same unit.
        weight: ``(ky, kx)``; 1 where there is signal.
    """
    there = weight == 1
    if not bool(there.any()):
        return math.nan
    one, two = (half[there] * torch.exp(-eta[there]) for half in halves)
    scale = (one.mean() + two.mean()) / 2
    square = ((one / scale - 1) * (two / scale - 1)).mean()
    return float(square.clamp_min(0).sqrt() / 2)


class Run(Loop):
    """A training on labels that are at hand.

    Args:
        config: The run.
        train: What it learns from.
        validation: What it is scored on.
        mixed: Convolutions in bfloat16.
        facts: Where the labels are from, as text.
    """

    def __init__(self, config: Config, train: list[Label], validation: list[Label], mixed: bool,
                 facts: dict[str, str]) -> None:
        super().__init__(config, mixed)
        self.validation, self.labels = validation, facts
        self.groups: dict[tuple[int, ...], list[Label]] = {}
        for one in train:
            self.groups.setdefault(tuple(one.target.shape), []).append(one)

    @property
    def facts(self) -> dict[str, str]:
        return self.labels

    def source(self) -> Source:
        return partial(_reflected, self.groups, self.config.trainer)

    def loss(self, item: Item) -> Tensor:
        channels, target, weight = item
        with self.precision():
            eta = self.network(channels)
        return gamma_loss(eta, target, weight).mean()

    def scores(self) -> dict[str, float]:
        if not self.validation:
            return {}
        errors, losses = [], []
        with torch.no_grad():
            for one in self.validation:
                eta = self.average(one.channels[None].to(self.device)).cpu()
                losses.append(float(gamma_loss(eta, one.target[None], one.weight[None])))
                errors.append(sigma_error(eta[0], one.halves, one.weight))
        known = [e for e in errors if not math.isnan(e)]
        return {"val_loss": sum(losses) / len(losses),
                "val_sigma_error": sum(known) / len(known) if known else math.nan}


def _reflected(
    groups: dict[tuple[int, ...], list[Label]], trainer: TrainerConfig, step: int
) -> Item:
    """Channels, targets and weights of labels of one shape, reflected at random."""
    generator = step_generator(trainer.seed, step)
    shapes = list(groups)
    sizes = torch.tensor([float(len(groups[shape])) for shape in shapes])
    group = groups[shapes[int(torch.multinomial(sizes, 1, generator=generator))]]
    chosen = torch.randint(len(group), (trainer.batch,), generator=generator)
    items = [group[int(k)] for k in chosen]
    parts = [torch.stack([getattr(one, name) for one in items])
             for name in ("channels", "target", "weight")]
    axes = [axis for axis in (-2, -1) if torch.rand((), generator=generator) < 0.5]
    return tuple(part.flip(axes) for part in parts)


def train_predictor(
    config: Config, mixed: bool, *, resume: bool = False, progress: Progress | None = None
) -> Path:
    """Make the labels that are not there yet, then train; what :func:`snrecon.training.train` does
    for this scheme. The labels stay in the output folder: they are the costly part.

    Args:
        config: The run, checked.
        mixed: Convolutions in bfloat16.
        resume: Continue from the last checkpoint in the folder, if there is one.
        progress: Called as ``progress(done, total, message)``, in thousandths of the run.
    """
    settings = config.reconstruction
    facts = {"reconstruction": settings.method, "labels": fingerprint(config)}
    kept = Path(config.output.folder) / f"labels-{facts['labels']}"

    def tell(count: int) -> None:
        if progress is not None:
            total = settings.measurements
            progress(int(1000 * count / total / 2), 1000, f"sketched {count} of {total} scans")

    recon = reconstruction(settings.method)  # before what is slow
    source = training_source(config)
    found = find_data(config, "validation") if config.data.validation else None
    train = labels(recon, config, source, settings.measurements, kept, tell)
    validation: list[Label] = []
    if found is not None:
        others = (Measured(found.volumes, config.simulation, OTHERS) if found.volumes
                  else validation_simulator(config, OTHERS, found))
        validation = labels(recon, config, others, VALIDATION, kept / "validation")
    run = Run(config, train, validation, mixed, facts)
    return run.run(resume, lambda share, message: progress and progress(
        int(500 + 500 * share), 1000, message))
