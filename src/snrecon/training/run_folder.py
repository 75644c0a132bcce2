"""Where a run puts its files, and whether another run has put its own there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from snrecon.errors import InputError
from snrecon.training.config import Config, OutputConfig


def with_output(config: Config) -> Config:
    """The configuration with name and folder of its output said: those of the network, by default.
    """
    name = config.output.name or config.network.name
    return replace(config, output=OutputConfig(config.output.folder or f"runs/{name}", name))


def require_unused(output: OutputConfig) -> None:
    """Whether a run may begin in this folder without replacing another's files.

    Raises:
        InputError: if there are weights, a log or a checkpoint.
    """
    folder = Path(output.folder)
    names = (f"{output.name}.safetensors", "last.ckpt", "log.csv")
    found = [name for name in names if (folder / name).exists()]
    if found:
        raise InputError(
            f"{folder}: this folder holds a training already ({', '.join(found)}); continue it "
            "with --resume, choose another output.folder, or give it up with --replace."
        )
