"""The Lightning module of every training scheme. Importing it needs the ``train`` extra."""

from __future__ import annotations

import copy
import csv
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from snrecon.networks.modl import MoDL
from snrecon.networks.store import save_weights
from snrecon.networks.varnet import VarNet
from snrecon.training.apply import apply, build, target_of
from snrecon.training.batch import Batch
from snrecon.training.checkpoint import schedule_of, share_of
from snrecon.training.config import Config
from snrecon.training.curvature import around, curvature, limited
from snrecon.training.divergence import check_number, check_weights
from snrecon.training.identity import settings_of
from snrecon.training.optimise import follow, set_rate
from snrecon.training.schemes import scheme_of
from snrecon.training.scores import nmse
from snrecon.training.stream import Drawn, Interval, Item, Stream


class Training(lightning.LightningModule):
    """Trains on a stream of measurements, one epoch being ``trainer.interval`` steps.

    Args:
        config: The run.
        bfloat16: Convolutions in bfloat16.
    """

    source: Drawn
    """Where batches come from; set before training, as it is slow to make."""
    validation: dict[float, Batch]
    """Fixed measurements by their acceleration; set before training."""
    unlabelled: Batch | None = None
    """Fixed measurements without targets, scored by the scheme's own loss; set before training."""

    def __init__(self, config: Config, bfloat16: bool) -> None:
        super().__init__()
        self.config = config
        self.scheme = scheme_of(config)
        self.mixed = bfloat16
        self.network = build(config.network)
        if isinstance(self.network, VarNet | MoDL):  # U-Nets train faster without
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.wanted = target_of(self.network)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.before = 0.0
        self.began = time.monotonic()
        self.recent: list[float] = []
        self.bends: list[float] = []
        self.best, self.waited = math.inf, 0

    @property
    def elapsed(self) -> float:
        """Seconds of training, over all the runs that this one continues."""
        return self.before + time.monotonic() - self.began

    @property
    def share(self) -> float:
        """How much of the run is over, 0 to 1, by the clock of this process."""
        return share_of(self.config.trainer, self.global_step, self.elapsed)

    def shared(self, own: float) -> float:
        """What the first process has of a number: processes have clocks of their own, but must
        learn at one rate and stop after the same step, for each waits for the others' gradients.
        All of them call this at the same place."""
        return float(self.trainer.strategy.broadcast(own))

    def on_train_start(self) -> None:
        # Now, as the other processes have read their data by now, for which the first one waits.
        self.began = time.monotonic()

    def train_dataloader(self) -> Any:
        trainer = self.config.trainer
        # Each epoch continues the stream, so that a resumed run sees what the whole one would.
        # Workers live on from one to the next, with the coil maps that they have estimated.
        # Counted by intervals: a step is another share of one for every number of devices.
        done: Any = self.trainer.fit_loop.epoch_progress.current
        interval = Interval(lambda: done.processed * trainer.interval, trainer.interval)
        return DataLoader(Stream(self.source, trainer.batch), sampler=interval, batch_size=None,
                          num_workers=trainer.workers, persistent_workers=trainer.workers > 0,
                          prefetch_factor=4 if trainer.workers else None)

    def configure_optimizers(self) -> Any:
        trainer = self.config.trainer
        return torch.optim.AdamW(self.network.parameters(), lr=trainer.learning_rate,
                                 weight_decay=trainer.weight_decay)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        trainer = self.config.trainer
        set_rate(self.trainer.optimizers[0], trainer, self.global_step,
                 schedule_of(trainer, self.global_step, self.shared(self.elapsed)))

    def training_step(self, item: Item, index: int) -> Tensor:
        # A generator for every step: a run that is resumed draws what the whole one would.
        generator = torch.Generator().manual_seed(
            self.config.trainer.seed * 2_000_003 + self.global_step + (self.global_rank << 48))
        batch = Batch(*item)
        batch = replace(batch, target=self.wanted(batch.target))
        weight = self.config.trainer.curvature
        bend = torch.zeros((), device=batch.b.device)
        known: Tensor | None = None
        if weight:
            images = self.reconstruct(self.network, around(batch, generator))
            bends = curvature(images, batch.support)
            self.bends.append(float(bends.detach().mean()))
            limit = self.config.trainer.curvature_limit
            known, bend = images[: len(batch.b)], limited(bends, limit).mean()

        def reconstruct(part: Batch) -> Tensor:
            if part is batch and known is not None:
                return known
            return self.reconstruct(self.network, part)

        loss = self.scheme.loss(reconstruct, batch, generator).mean() + weight * bend
        self.recent.append(self.checked(float(loss.detach())))
        return loss

    def checked(self, loss: float) -> float:
        """A loss that is finite on every process.

        Raises:
            Diverged: on all processes, if it is not on one.
        """
        finite = self.trainer.strategy.reduce_boolean_decision(math.isfinite(loss))
        check_number("loss", loss if math.isfinite(loss) == finite else math.nan, self.global_step)
        return loss

    def reconstruct(self, network: nn.Module, batch: Batch) -> Tensor:
        """Images of a batch, ``(batch, ky, kx)``."""
        with torch.autocast(batch.b.device.type, torch.bfloat16, enabled=self.mixed):
            return apply(network, batch)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        follow(self.average, self.network, self.config.trainer.ema, self.global_step)
        if self.shared(self.share) >= 1:
            self.trainer.should_stop = True

    def on_train_epoch_end(self) -> None:
        self.record()
        patience = self.config.trainer.patience
        if patience and self.waited >= patience:
            self.trainer.should_stop = True

    def record(self) -> dict[str, float]:
        """Score the averaged weights, add a line to the log, export them (with patience: if they
        are the best so far).

        Raises:
            Diverged: if they or their errors are not finite; nothing is written then.
        """
        check_weights(self.average, self.global_step)
        folder = Path(self.config.output.folder)
        count = max(1, len(self.recent))
        row = {"minutes": self.elapsed / 60, "step": float(self.global_step),
               "loss": sum(self.recent) / count}
        self.recent.clear()
        if self.config.trainer.curvature:
            row["curvature"] = sum(self.bends) / max(1, len(self.bends))
            self.bends.clear()
        with torch.no_grad():
            for rate, batch in self.validation.items():
                batch = batch.to(self.device)
                answer = self.reconstruct(self.average, batch)
                row[f"val_nmse_R{rate:g}"] = float(
                    nmse(answer, self.wanted(batch.target)).mean())
            if self.unlabelled is not None:
                # The same samples are predicted at every interval.
                losses = self.scheme.loss(lambda part: self.reconstruct(self.average, part),
                                          self.unlabelled.to(self.device),
                                          torch.Generator().manual_seed(0))
                row["val_loss"] = float(losses.mean())
        errors = [value for key, value in row.items() if key.startswith("val_")]
        mean = self.shared(sum(errors) / max(1, len(errors)))  # so that patience ends with one
        check_number("validation error", mean, self.global_step)
        better = mean < self.best
        self.best, self.waited = (mean, 0) if better else (self.best, self.waited + 1)
        if not self.trainer.is_global_zero:
            return row
        if self.logger is not None:
            self.logger.log_metrics(row, step=self.global_step)
        path = folder / "log.csv"
        fresh = not path.exists()
        with path.open("a", newline="") as stream:
            writer = csv.DictWriter(stream, list(row))
            if fresh:
                writer.writeheader()
            writer.writerow({key: f"{value:.6g}" for key, value in row.items()})
        if better or not self.config.trainer.patience:
            self.export(folder / f"{self.config.output.name}.safetensors")
        return row

    def export(self, path: Path) -> None:
        """The averaged weights as safetensors."""
        network = copy.deepcopy(self.average).to("cpu")
        save_weights(network, path, {"steps": str(self.global_step),
                                     "minutes": f"{self.elapsed / 60:.1f}"})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["elapsed"] = self.elapsed
        checkpoint["patience"] = (self.best, self.waited)
        checkpoint["settings"] = settings_of(self.config, self.network)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.before = float(checkpoint["elapsed"])
        self.best, self.waited = checkpoint.get("patience", (math.inf, 0))
        self.began = time.monotonic()
