"""Networks that halve the grids of a training too often are told so before they start."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from snrecon.errors import InputError
from snrecon.networks.e2e_varnet import E2EVarNet
from snrecon.networks.unet import Unet
from snrecon.networks.varnet import VarNet
from snrecon.training.config import Config, DataConfig, NetworkConfig, SimulationConfig
from snrecon.training.grid_check import check_grids
from snrecon.training.stream import Found, validation_simulator

NONE = Found([], [])


@dataclass
class Scan:
    """A volume of which only the size is asked."""

    shape: tuple[int, ...]
    name: str = "scan"
    slices: int = 1

    def read(self, index: int) -> None:
        """No slice is needed."""


def simulated() -> Found:
    return Found([], [None])


def configuration(*grids: list[int], columns: int = 0) -> Config:
    return Config(DataConfig(["a"], [], columns=columns), network=NetworkConfig("unet"),
                  simulation=SimulationConfig(grids=list(grids)))


def test_grids_of_simulated_measurements():
    config, network = configuration([64, 64], [16, 16]), Unet(chans=2, pools=4)
    with pytest.raises(InputError, match=r"simulation\.grids: 16x16 .* network\.pools"):
        check_grids(config, network, simulated(), NONE)
    check_grids(config, Unet(chans=2, pools=3), simulated(), NONE)
    check_grids(config, VarNet(1, 2), simulated(), NONE)
    check_grids(configuration([16, 32]), network, simulated(), NONE)
    padded = E2EVarNet(1, 2, 4, 2, 4)
    with pytest.raises(InputError, match=r"simulation\.grids: 16x16"):
        check_grids(config, padded, simulated(), NONE)
    check_grids(configuration([17, 16]), padded, simulated(), NONE)


def test_grids_of_validation_images(images):
    config, network = configuration([1024, 1024]), Unet(chans=1, pools=8)
    check_grids(config, network, simulated(), NONE)
    with pytest.raises(InputError, match=r"data\.validation: 160x160"):
        check_grids(config, network, simulated(), simulated())
    config = replace(config, data=DataConfig([images], [images], voxel_sizes={"heads": 5.0}))
    assert validation_simulator(config, 1).draw(0, 1).b.shape == (1, 160, 160)


def test_measured_scans_have_grids_of_their_own():
    network = Unet(chans=2, pools=4)
    scans = Found([Scan((4, 64, 48))], [])
    check_grids(configuration([16, 16]), network, scans, NONE)
    check_grids(configuration([16, 16], columns=16), network, scans, NONE)
    with pytest.raises(InputError, match=r"data\.columns: 64x8 "):
        check_grids(configuration([16, 16], columns=8), network, scans, NONE)
    check_grids(configuration([64, 64], columns=8), network, simulated(), scans)
    with pytest.raises(InputError, match=r"data\.images: 64x12 "):
        check_grids(configuration([64, 64], columns=16), network, Found([Scan((4, 64, 12))], []),
                    NONE)
