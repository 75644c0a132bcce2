"""What makes two runs the same training, so that one can continue the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from snrecon.errors import InputError
from snrecon.networks.store import ARGUMENTS
from snrecon.training.config import Config

FREE = frozenset(f"trainer.{key}" for key in (
    "max_minutes", "max_steps", "patience", "learning_rate", "clip", "devices", "logger", "threads",
    "workers"))
"""Settings that a run may be continued with others of: limits, means, and how fast it goes on."""


def settings_of(config: Config, network: nn.Module) -> dict[str, Any]:
    """The settings that a run is continued with unchanged, as plain values by their keys.

    Args:
        config: The run.
        network: That of the run, whose arguments are here even where they are its own defaults.
    """
    found: dict[str, Any] = {"scheme": config.scheme, "network.name": config.network.name}
    for table in ("data", "simulation", "ssdu", "consistency", "reconstruction", "prior",
                  "trainer"):
        found |= {f"{table}.{key}": value for key, value in asdict(getattr(config, table)).items()}
    found |= {f"network.{key}": getattr(network, key) for key in ARGUMENTS[config.network.name]}
    kept = {key: value for key, value in found.items() if key not in FREE}
    # As a checkpoint has them: tuples and paths become lists and text.
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain


def check_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare the settings of a checkpoint with those of the run that would continue it.

    Args:
        path: The checkpoint, for the message.
        before: What :func:`settings_of` said then. Settings that one of the versions of this
            package did not have, or all of them if it kept none, are believed to be the same.
        now: What it says now.

    Raises:
        InputError: naming the first key that differs.
    """
    for key, value in now.items():
        if key in before and before[key] != value:
            raise InputError(
                f"{path}: this run began with {key} = {_short(before[key])}, but the configuration "
                f"has {_short(value)}; undo that change, choose another folder, or train with "
                "--replace.")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
