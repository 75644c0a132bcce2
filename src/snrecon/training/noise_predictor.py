"""Scheme ``noise_predictor``: a small network learns the noise of one fixed reconstruction."""

from __future__ import annotations

import copy
import csv
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.networks.noise_predictor import NoisePredictor
from snrecon.networks.store import save_weights
from snrecon.training.apply import build
from snrecon.training.checkpoint import cut_log, share_of
from snrecon.training.config import Config
from snrecon.training.measured import Measured
from snrecon.training.noise_labels import Label, fingerprint, labels, reconstruction
from snrecon.training.optimise import follow, set_rate
from snrecon.training.stream import find_data, training_source, validation_simulator

Progress = Callable[[int, int | None, str], None]
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


@dataclass
class Run:
    """A training on labels that are at hand."""

    config: Config
    train: list[Label]
    validation: list[Label]
    mixed: bool
    network: NoisePredictor = field(init=False)
    average: NoisePredictor = field(init=False)
    step: int = 0
    before: float = 0.0
    recent: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(self.config.trainer.seed)
        built = build(self.config.network)
        assert isinstance(built, NoisePredictor)
        self.network = built
        self.average = copy.deepcopy(built).requires_grad_(False)
        trainer = self.config.trainer
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=trainer.learning_rate, weight_decay=trainer.weight_decay)
        self.began = time.monotonic()
        self.groups: dict[tuple[int, ...], list[Label]] = {}
        for one in self.train:
            self.groups.setdefault(tuple(one.target.shape), []).append(one)

    @property
    def elapsed(self) -> float:
        """Seconds, those of the runs that this one continues included."""
        return self.before + time.monotonic() - self.began

    @property
    def share(self) -> float:
        """How much is over, 0 to 1."""
        return share_of(self.config.trainer, self.step, self.elapsed)

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Labels of one shape, drawn for this step alone; reflected at random."""
        generator = torch.Generator().manual_seed(
            self.config.trainer.seed * 2_000_003 + self.step)
        shapes = list(self.groups)
        sizes = torch.tensor([float(len(self.groups[shape])) for shape in shapes])
        group = self.groups[shapes[int(torch.multinomial(sizes, 1, generator=generator))]]
        chosen = torch.randint(len(group), (self.config.trainer.batch,), generator=generator)
        items = [group[int(k)] for k in chosen]
        parts = [torch.stack([getattr(one, name) for one in items])
                 for name in ("channels", "target", "weight")]
        axes = [axis for axis in (-2, -1) if torch.rand((), generator=generator) < 0.5]
        channels, target, weight = (part.flip(axes) for part in parts)
        return channels, target, weight

    def advance(self) -> None:
        """One step."""
        trainer = self.config.trainer
        channels, target, weight = self.batch()
        set_rate(self.optimizer, trainer, self.step, self.share)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.mixed):
            eta = self.network(channels)
        loss = gamma_loss(eta, target, weight).mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), trainer.clip)
        self.optimizer.step()
        self.step += 1
        self.recent.append(float(loss.detach()))
        follow(self.average, self.network, trainer.ema, self.step)

    def scores(self) -> dict[str, float]:
        """Of the averaged weights on the validation labels."""
        if not self.validation:
            return {}
        errors, losses = [], []
        with torch.no_grad():
            for one in self.validation:
                eta = self.average(one.channels[None])
                losses.append(float(gamma_loss(eta, one.target[None], one.weight[None])))
                errors.append(sigma_error(eta[0], one.halves, one.weight))
        known = [e for e in errors if not math.isnan(e)]
        return {"val_loss": sum(losses) / len(losses),
                "val_sigma_error": sum(known) / len(known) if known else math.nan}

    def record(self, folder: Path, name: str, facts: dict[str, str]) -> None:
        """A line in the log, weights and checkpoint."""
        row = {"minutes": self.elapsed / 60, "step": float(self.step),
               "loss": sum(self.recent) / max(1, len(self.recent)), **self.scores()}
        self.recent.clear()
        path = folder / "log.csv"
        fresh = not path.exists()
        with path.open("a", newline="") as stream:
            writer = csv.DictWriter(stream, list(row))
            if fresh:
                writer.writeheader()
            writer.writerow({key: f"{value:.6g}" for key, value in row.items()})
        save_weights(self.average, folder / f"{name}.safetensors", {
            **facts, "steps": str(self.step), "minutes": f"{self.elapsed / 60:.1f}"})
        partial = folder / "last.ckpt.partial"
        torch.save({"network": self.network.state_dict(), "average": self.average.state_dict(),
                    "optimizer": self.optimizer.state_dict(), "step": self.step,
                    "elapsed": self.elapsed, **facts}, partial)
        partial.replace(folder / "last.ckpt")

    def resume(self, path: Path, facts: dict[str, str]) -> None:
        """Continue from a checkpoint.

        Raises:
            InputError: if it is damaged, or of another run.
        """
        try:
            found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            same = all(found.get(key) == value for key, value in facts.items())
            if same:
                self.network.load_state_dict(found["network"])
                self.average.load_state_dict(found["average"])
                self.optimizer.load_state_dict(found["optimizer"])
                self.step, self.before = int(found["step"]), float(found["elapsed"])
        except Exception as error:  # a damaged pickle can fail in any way
            raise InputError(f"{path}: this checkpoint cannot be read, or is of another network; "
                             "train again without --resume.") from error
        if not same:
            raise InputError(f"{path}: this run learned from other labels than the configuration "
                             "describes; choose another folder, or train without --resume.")
        self.began = time.monotonic()


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
    folder, name = Path(config.output.folder), config.output.name
    settings = config.reconstruction
    facts = {"reconstruction": settings.method, "labels": fingerprint(config)}
    kept = folder / f"labels-{facts['labels']}"

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
    run = Run(config, train, validation, mixed)
    checkpoint = folder / "last.ckpt"
    if resume and checkpoint.exists():
        run.resume(checkpoint, facts)
        cut_log(folder / "log.csv", run.step)
    else:
        for of_another_run in (folder / "log.csv", checkpoint):
            of_another_run.unlink(missing_ok=True)
    while run.share < 1:
        run.advance()
        if progress is not None:
            progress(int(500 + 500 * run.share), 1000,
                     f"step {run.step}, loss {run.recent[-1]:.3f}")
        if run.step % config.trainer.interval == 0:
            run.record(folder, name, facts)
    if run.recent:
        run.record(folder, name, facts)
    return folder / f"{name}.safetensors"
