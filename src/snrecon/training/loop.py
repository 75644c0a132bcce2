"""The loop of trainings that need no measurements: steps, averaged weights, log, checkpoint."""

from __future__ import annotations

import copy
import csv
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from snrecon.errors import InputError
from snrecon.networks.store import save_weights
from snrecon.training.apply import build, start_from
from snrecon.training.checkpoint import cut_log, kept_weights, schedule_of, share_of
from snrecon.training.config import Config
from snrecon.training.divergence import check_number, check_weights
from snrecon.training.identity import check_same, settings_of
from snrecon.training.optimise import follow, set_rate

Progress = Callable[[int, int | None, str], None]
Item = tuple[Tensor, ...]
"""What one step learns from, on the CPU."""
Source = Callable[[int], Item]
"""Number of a step to its item, which depends on the number and a seed only."""
ENDLESS = 10**9
"""More steps than any run has."""
AHEAD = 4
"""Items that every worker has ready."""


def step_generator(seed: int, step: int) -> torch.Generator:
    """A generator for every step: a run that is resumed draws what the whole one would."""
    return torch.Generator().manual_seed(seed * 2_000_003 + step)


class Steps(Dataset[Item]):
    """A source as worker processes know it."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, step: int) -> Item:
        return self.source(step)


class Loop(ABC):
    """A training of one network; what it learns from is said by a subclass.

    Args:
        config: The run.
        mixed: Convolutions in bfloat16.

    Raises:
        InputError: if the weights to start from are missing, or of another network.
    """

    def __init__(self, config: Config, mixed: bool) -> None:
        torch.manual_seed(config.trainer.seed)
        self.config, self.mixed = config, mixed
        self.network = build(config.network)
        if config.trainer.initial:
            start_from(config, self.network)
        if torch.cuda.is_available():
            self.network.to("cuda")
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        trainer = config.trainer
        taught = [one for one in self.network.parameters() if one.requires_grad]
        self.optimizer = torch.optim.AdamW(
            taught, lr=trainer.learning_rate, weight_decay=trainer.weight_decay)
        self.step, self.before = 0, 0.0
        self.recent: list[float] = []
        self.began = time.monotonic()

    @abstractmethod
    def source(self) -> Source:
        """Where items come from; it is sent to the worker processes."""

    @abstractmethod
    def loss(self, item: Item) -> Tensor:
        """Loss of one batch, whose tensors are where the network is."""

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """Of the averaged weights on validation data, by their names in the log."""

    @property
    def facts(self) -> dict[str, str]:
        """What must be the same when a run is continued; kept with the weights."""
        return {}

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def elapsed(self) -> float:
        """Seconds, those of the runs that this one continues included."""
        return self.before + time.monotonic() - self.began

    @property
    def share(self) -> float:
        """How much is over, 0 to 1."""
        return share_of(self.config.trainer, self.step, self.elapsed)

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Convolutions in bfloat16, if that is wanted."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            yield

    def items(self) -> Iterator[Item]:
        """From the next step on, without end, drawn ahead by ``trainer.workers`` processes."""
        workers = self.config.trainer.workers
        loader = DataLoader(Steps(self.source()), batch_size=None, num_workers=workers,
                            sampler=range(self.step, ENDLESS),
                            prefetch_factor=AHEAD if workers else None)
        return iter(loader)

    def advance(self, item: Item) -> None:
        """One step.

        Raises:
            Diverged: if the loss is not finite.
        """
        trainer = self.config.trainer
        set_rate(self.optimizer, trainer, self.step,
                 schedule_of(trainer, self.step, self.elapsed))
        loss = self.loss(tuple(part.to(self.device) for part in item))
        number = float(loss.detach())
        check_number("loss", number, self.step)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), trainer.clip)
        self.optimizer.step()
        self.step += 1
        self.recent.append(number)
        follow(self.average, self.network, trainer.ema, self.step)

    def record(self, folder: Path, name: str) -> None:
        """A line in the log, weights and checkpoint.

        Raises:
            Diverged: if the weights are not finite; nothing is written then.
        """
        check_weights(self.average, self.step)
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
            **self.facts, "steps": str(self.step), "minutes": f"{self.elapsed / 60:.1f}"})
        partial = folder / "last.ckpt.partial"
        torch.save({"network": self.network.state_dict(), "average": self.average.state_dict(),
                    "optimizer": self.optimizer.state_dict(), "step": self.step,
                    "elapsed": self.elapsed,
                    "settings": settings_of(self.config, self.network), **self.facts}, partial)
        partial.replace(folder / "last.ckpt")

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            InputError: if it is damaged, or of another run.
        """
        facts, settings = self.facts, settings_of(self.config, self.network)
        try:
            found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            same = all(found.get(key) == value for key, value in facts.items())
            before = dict(found.get("settings", {}))
            if same:
                check_same(path, before, settings)
                self.network.load_state_dict(found["network"])
                self.average.load_state_dict(found["average"])
                self.optimizer.load_state_dict(found["optimizer"])
                self.step, self.before = int(found["step"]), float(found["elapsed"])
        except InputError:
            raise
        except Exception as error:  # a damaged pickle can fail in any way
            raise InputError(f"{path}: this checkpoint cannot be read, or is of another network; "
                             "train again with --replace.") from error
        if not same:
            raise InputError(f"{path}: this run learned from other labels than the configuration "
                             "describes; choose another folder, or train with --replace.")
        self.began = time.monotonic()

    def run(self, resume: bool, tell: Callable[[float, str], None]) -> Path:
        """Train to the end, in a folder that exists; ``tell(share, message)`` hears of every step.

        Returns:
            Path of the weights.

        Raises:
            InputError: if the checkpoint is not of this run, or a finished run has no weights.
            Diverged: if the loss or the weights are no longer finite.
        """
        folder, name = Path(self.config.output.folder), self.config.output.name
        checkpoint = folder / "last.ckpt"
        goes_on = resume and checkpoint.exists()
        if goes_on:
            self.resume(checkpoint)
            cut_log(folder / "log.csv", self.step)
        if self.share >= 1:
            return kept_weights(folder / f"{name}.safetensors")
        for item in self.items():
            self.advance(item)
            if not goes_on:  # files of another run make way once this one is known to work
                for of_another_run in (folder / "log.csv", checkpoint):
                    of_another_run.unlink(missing_ok=True)
                goes_on = True
            tell(self.share, f"step {self.step}, loss {self.recent[-1]:.3f}")
            if self.step % self.config.trainer.interval == 0:
                self.record(folder, name)
            if self.share >= 1:
                break
        if self.recent:
            self.record(folder, name)
        return kept_weights(folder / f"{name}.safetensors")
