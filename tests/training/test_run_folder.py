"""Where a run puts its files by default."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from snrecon.errors import InputError
from snrecon.training import train
from snrecon.training.config import Config, DataConfig, NetworkConfig, OutputConfig
from snrecon.training.run_folder import with_output


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (OutputConfig(), OutputConfig("runs/modl", "modl")),
        (OutputConfig(name="mine"), OutputConfig("runs/mine", "mine")),
        (OutputConfig("here"), OutputConfig("here", "modl")),
        (OutputConfig("here", "mine"), OutputConfig("here", "mine")),
    ],
)
def test_the_output_is_called_as_the_network(given: OutputConfig, expected: OutputConfig) -> None:
    config = Config(DataConfig([], []), network=NetworkConfig("modl"), output=given)
    assert with_output(config).output == expected
    assert with_output(replace(config, output=expected)).output == expected


def test_what_cannot_be_resumed_is_not_replaced_by_resume(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "net.safetensors").write_bytes(b"weights")
    config = Config(DataConfig(["none"], []), output=OutputConfig(str(folder), "net"))
    for resume in (False, True):
        with pytest.raises(InputError, match="holds a training already"):
            train(config, resume=resume)
    assert (folder / "net.safetensors").read_bytes() == b"weights"
