"""What an earlier run left in its folder, for the run that continues it."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snrecon.errors import InputError
from snrecon.io.staging import staged
from snrecon.training.config import Config, TrainerConfig
from snrecon.training.identity import check_same, settings_of


def share_of(trainer: TrainerConfig, step: int, seconds: float) -> float:
    """How much of a run is over after so many steps and seconds, 0 to 1, where it stops."""
    shares = [schedule_of(trainer, step, seconds)]
    if trainer.max_minutes > 0:
        shares.append(seconds / (60 * trainer.max_minutes))
    return min(1.0, max(shares))


def schedule_of(trainer: TrainerConfig, step: int, seconds: float) -> float:
    """How much of the learning rate's way is over, 0 to 1.

    Steps alone decide where their number is limited: a clock, which no second run has, would let
    the weights depend on how fast the machine was.
    """
    if trainer.max_steps > 0:
        return min(1.0, step / trainer.max_steps)
    if trainer.max_minutes > 0:
        return min(1.0, seconds / (60 * trainer.max_minutes))
    return 0.0


@dataclass(frozen=True)
class Earlier:
    """A run as its last checkpoint describes it."""

    path: Path
    step: int
    seconds: float
    waited: int
    """Validations without a smaller error."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of the network's weights, by name."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What :func:`snrecon.training.identity.settings_of` said; empty if it was not kept."""

    def finished(self, trainer: TrainerConfig) -> bool:
        """Whether these limits, which may be others than it ran with, leave nothing to do."""
        stopped = 0 < trainer.patience <= self.waited
        return stopped or share_of(trainer, self.step, self.seconds) >= 1

    def check(self, config: Config, network: torch.nn.Module) -> None:
        """Whether a run with this network, and with these settings, continues it.

        Raises:
            InputError: if its weights are of another network, or a setting was another.
        """
        if shapes_of(network.state_dict()) != self.shapes:
            raise InputError(
                f"{self.path}: this run trained another network than [network] describes; undo "
                "that change, choose another folder, or train with --replace."
            )
        check_same(self.path, self.settings, settings_of(config, network))


def earlier_run(path: Path) -> Earlier:
    """Read a checkpoint of a training.

    Raises:
        InputError: if it is damaged.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
        own = {key.removeprefix("network."): value for key, value in found["state_dict"].items()
               if key.startswith("network.")}
        _, waited = found.get("patience", (math.inf, 0))
        return Earlier(path, int(found["global_step"]), float(found["elapsed"]), int(waited),
                       shapes_of(own), dict(found.get("settings", {})))
    except Exception as error:  # a damaged pickle can fail in any way
        raise InputError(
            f"{path}: this checkpoint cannot be read; train again with --replace."
        ) from error


def kept_weights(path: Path) -> Path:
    """The weights of a run that has reached its end.

    Raises:
        InputError: if they are not there.
    """
    if not path.is_file():
        raise InputError(f"{path}: this training is finished, but its weights are not there; raise "
                         "its limits, or train with --replace.")
    return path


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors by name."""
    return {key: tuple(value.shape) for key, value in state.items()}


def cut_log(path: Path, step: int) -> None:
    """Leave out the lines of a log after ``step``: a run that continues there writes them again.

    Raises:
        InputError: if the log cannot be written.
    """
    if not path.is_file():
        return
    with path.open(newline="") as stream:
        head, *rows = list(csv.reader(stream)) or [[]]
    column = head.index("step") if "step" in head else 0

    def kept(row: list[str]) -> bool:
        try:
            return len(row) == len(head) and float(row[column]) <= step
        except ValueError:  # half a line, when the power went
            return False

    with staged() as staging, staging.path(path).open("w", newline="") as stream:
        csv.writer(stream).writerows([head, *filter(kept, rows)])
