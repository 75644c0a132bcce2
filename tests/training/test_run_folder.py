"""Where a run puts its files by default."""

from __future__ import annotations

from dataclasses import replace

import pytest

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
