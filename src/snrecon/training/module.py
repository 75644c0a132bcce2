"""The Lightning module of supervised training. Importing it needs the ``train`` extra."""

from __future__ import annotations

import copy
import csv
import math
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from snrecon.errors import InputError
from snrecon.networks.store import load_weights, save_weights
from snrecon.networks.varnet import VarNet
from snrecon.training.batch import Batch
from snrecon.training.config import Config
from snrecon.training.gram import batch_gram
from snrecon.training.schemes import scheme_of
from snrecon.training.scores import nmse
from snrecon.training.simulate import Simulator
from snrecon.training.stream import Item, Stream


class Supervised(lightning.LightningModule):
    """Trains on a stream of simulated measurements, one epoch being ``trainer.interval`` steps.

    Args:
        config: The run.
        simulator: Where batches come from.
        validation: Fixed measurements by their acceleration.
        bfloat16: Convolutions in bfloat16.
    """

    def __init__(
        self, config: Config, simulator: Simulator, validation: dict[float, Batch], bfloat16: bool
    ) -> None:
        super().__init__()
        self.config, self.simulator, self.validation = config, simulator, validation
        self.scheme = scheme_of(config)
        self.mixed = bfloat16
        self.network = VarNet(config.network.unrolls, config.network.features)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.before = 0.0
        self.began = time.monotonic()
        self.recent: list[float] = []

    def start_from(self, weights: str) -> None:
        """Begin with trained weights instead of random ones.

        Raises:
            InputError: if there are no such weights, or they are of a network of another size.
        """
        try:
            state = load_weights("varnet", weights).state_dict()
            for network in (self.network, self.average):
                network.load_state_dict(state)
        except RuntimeError as error:
            raise InputError(f"the weights {weights!r} do not fit [network].") from error

    @property
    def elapsed(self) -> float:
        """Seconds of training, over all the runs that this one continues."""
        return self.before + time.monotonic() - self.began

    @property
    def share(self) -> float:
        """How much of the run is over, 0 to 1."""
        trainer = self.config.trainer
        shares = [0.0]
        if trainer.max_minutes > 0:
            shares.append(self.elapsed / (60 * trainer.max_minutes))
        if trainer.max_steps > 0:
            shares.append(self.global_step / trainer.max_steps)
        return min(1.0, max(shares))

    def train_dataloader(self) -> Any:
        trainer = self.config.trainer
        # Each epoch continues the stream, so that a resumed run sees what the whole one would.
        stream = Stream(self.simulator, self.current_epoch * trainer.interval, trainer.interval,
                        trainer.batch)
        ahead = 4 if trainer.workers else None
        return DataLoader(stream, batch_size=None, num_workers=trainer.workers,
                          prefetch_factor=ahead)

    def configure_optimizers(self) -> Any:
        trainer = self.config.trainer
        return torch.optim.AdamW(self.network.parameters(), lr=trainer.learning_rate,
                                 weight_decay=trainer.weight_decay)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        trainer = self.config.trainer
        warm = min(1.0, (self.global_step + 1) / max(1, trainer.warmup))
        rate = trainer.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * self.share))
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = max(rate, 1e-3 * trainer.learning_rate)

    def training_step(self, item: Item, index: int) -> Tensor:
        # A generator for every step: a run that is resumed draws what the whole one would.
        generator = torch.Generator().manual_seed(
            self.config.trainer.seed * 2_000_003 + self.global_step)
        losses = self.scheme.loss(
            lambda batch: self.reconstruct(self.network, batch), Batch(*item), generator)
        loss = losses.mean()
        self.recent.append(float(loss.detach()))
        return loss

    def reconstruct(self, network: VarNet, batch: Batch) -> Tensor:
        """Images of a batch, ``(batch, ky, kx)``."""
        gram = batch_gram(batch.maps, batch.mask)
        with torch.autocast(batch.b.device.type, torch.bfloat16, enabled=self.mixed):
            answer: Tensor = network(batch.b, gram, batch.support)
        return answer

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        steps = self.global_step
        decay = min(self.config.trainer.ema, (1 + steps) / (10 + steps))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.network.parameters(),
                                 strict=True):
                mean.lerp_(now, 1 - decay)
        if self.share >= 1:
            self.trainer.should_stop = True

    def on_train_epoch_end(self) -> None:
        self.record()

    def record(self) -> dict[str, float]:
        """Score the averaged weights, add a line to the log, export them."""
        folder = Path(self.config.output.folder)
        count = max(1, len(self.recent))
        row = {"minutes": self.elapsed / 60, "step": float(self.global_step),
               "loss": sum(self.recent) / count}
        self.recent.clear()
        with torch.no_grad():
            for rate, batch in self.validation.items():
                batch = batch.to(self.device)
                answer = self.reconstruct(self.average, batch)
                row[f"val_nmse_R{rate:g}"] = float(nmse(answer, batch.target).mean())
        path = folder / "log.csv"
        fresh = not path.exists()
        with path.open("a", newline="") as stream:
            writer = csv.DictWriter(stream, list(row))
            if fresh:
                writer.writeheader()
            writer.writerow({key: f"{value:.6g}" for key, value in row.items()})
        self.export(folder / f"{self.config.output.name}.safetensors")
        return row

    def export(self, path: Path) -> None:
        """The averaged weights as safetensors."""
        network = copy.deepcopy(self.average).to("cpu")
        save_weights(network, path, {"steps": str(self.global_step),
                                     "minutes": f"{self.elapsed / 60:.1f}"})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["elapsed"] = self.elapsed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.before = float(checkpoint["elapsed"])
        self.began = time.monotonic()
