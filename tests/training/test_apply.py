"""Every network learns by every scheme, and a run that is cut continues bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from snrecon.errors import InputError
from snrecon.networks.store import NETWORKS, load_weights
from snrecon.training.apply import apply, build, target_of
from snrecon.training.batch import Batch
from snrecon.training.config import (
    PRIORS,
    SCHEMES,
    Config,
    DataConfig,
    NetworkConfig,
    OutputConfig,
    SimulationConfig,
    TrainerConfig,
)
from snrecon.training.config_check import check
from snrecon.training.schemes import scheme_of
from snrecon.training.scores import nmse
from snrecon.training.simulate import Simulator

SMALL = {
    "varnet": {"unrolls": 2, "features": 6},
    "modl": {"unrolls": 2, "features": 8, "layers": 3, "iterations": 4},
    "unet": {"in_chans": 2, "out_chans": 2, "chans": 8, "pools": 2},
    "unet magnitude": {"in_chans": 1, "out_chans": 1, "chans": 8, "pools": 2},
    "unet consistent": {"chans": 8, "pools": 2, "sense_steps": 2, "consistency_steps": 3},
    "e2e_varnet": {"unrolls": 2, "chans": 4, "pools": 2, "sens_chans": 2, "sens_pools": 2},
    "e2e_varnet memory": {"unrolls": 2, "chans": 4, "pools": 2, "sens_chans": 2, "sens_pools": 2,
                          "residual": 1, "espirit": 4, "memory": 1},
}
STEPS = 80


def network_config(kind: str) -> NetworkConfig:
    return NetworkConfig(kind.split()[0], SMALL[kind])


def slices() -> Batch:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    head = ((x / 0.7) ** 2 + (y / 0.85) ** 2 < 1).float() * (1 + 0.5 * torch.sin(9 * x))
    settings = SimulationConfig(grids=[[32, 32]], coils=[4, 4], accelerations=[2.0],
                                kinds=["random"], snr=[50.0, 50.0])
    return Simulator({32: head[None].repeat(4, 1, 1)}, settings, 1).draw(0, 1)


def test_every_network_of_the_package_is_here():
    others = {"noise_predictor", *PRIORS.values()}
    assert {kind.split()[0] for kind in SMALL} == set(NETWORKS) - others


CASES = [(kind, scheme) for kind in SMALL for scheme in SCHEMES
         if scheme not in ("noise_predictor", *PRIORS)
         and (kind, scheme) != ("unet magnitude", "ssdu")]


@pytest.mark.parametrize(
    ("scheme", "settings", "message"),
    [
        ("ssdu", {"in_chans": 1, "out_chans": 1}, "ssdu predicts k-space"),
        ("supervised", {"in_chans": 1}, "must both be"),
        ("supervised", {"in_chans": 3, "out_chans": 3}, "must both be"),
    ],
)
def test_networks_that_cannot_learn_are_a_sentence(scheme, settings, message):
    config = Config(data=DataConfig(["none"], []), scheme=scheme,
                    network=NetworkConfig("unet", settings))
    with pytest.raises(InputError, match=message):
        check(config)


@pytest.mark.parametrize(("kind", "scheme"), CASES)
def test_one_slice_can_be_overfitted(kind, scheme):
    """The loss on one slice falls: with its target by the error to below 0.5 of what it was;
    without, to below 0.9 of it (half of the samples cannot be predicted below their noise)."""
    config = Config(data=DataConfig(["none"], []), scheme=scheme, network=network_config(kind))
    batch = slices()
    torch.manual_seed(0)
    network = build(config.network)
    batch = replace(batch, target=target_of(network)(batch.target))
    teacher = scheme_of(config)

    def loss(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step % 4)
        return teacher.loss(lambda part: apply(network, part), batch, generator).mean()

    def score() -> float:
        with torch.no_grad():
            if scheme == "ssdu":
                return sum(float(loss(step)) for step in range(4)) / 4
            return float(nmse(apply(network, batch), batch.target))

    before = score()
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(STEPS):
        optimiser.zero_grad()
        loss(step).backward()
        optimiser.step()
    assert score() < (0.9 if scheme == "ssdu" else 0.5) * before


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:48j, -1:1:40j]
    head = (x / 0.7) ** 2 + (y / 0.85) ** 2 < 1
    volume = 500 * head * (1 + 0.2 * rng.random((6, 48, 40)))
    np.savez(tmp_path / "heads.npz", x=volume.astype(np.uint16))
    return f"{tmp_path / 'heads.npz'}:x"


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [("modl", "ssdu"), ("unet", "noise2recon"), ("e2e_varnet", "supervised"), ("varnet", "vortex")],
)
def test_an_interrupted_run_continues_bit_for_bit_and_loads_by_name(
    images, tmp_path, kind, scheme
):
    pytest.importorskip("lightning")
    from snrecon.training import train

    def config(folder: str) -> Config:
        return Config(
            data=DataConfig([images], [], voxel_sizes={"heads": 5.0}),
            scheme=scheme,
            simulation=SimulationConfig(grids=[[32, 32]], coils=[3, 3], accelerations=[2.0], pool=4,
                                        kinds=["random"]),
            network=network_config(kind),
            trainer=TrainerConfig(max_minutes=0.0, max_steps=6, batch=2, interval=2, workers=0,
                                  precision="float32", warmup=2, seed=5),
            output=OutputConfig(str(tmp_path / folder), "net"),
        )

    class Interrupted(Exception):
        pass

    def stop(done, total, message):
        if message.startswith("step 3,"):
            raise Interrupted

    whole = train(config("whole"))
    with pytest.raises(Interrupted):
        train(config("parts"), progress=stop)
    resumed = train(config("parts"), resume=True)
    a, b = load_file(whole), load_file(resumed)
    assert set(a) == set(b)
    for key in a:
        assert torch.equal(a[key], b[key]), key
    network = load_weights(kind, whole)
    assert isinstance(network, NETWORKS[kind])
