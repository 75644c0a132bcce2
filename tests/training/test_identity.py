"""Which changes of a configuration are another training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from snrecon.errors import InputError
from snrecon.networks.varnet import VarNet
from snrecon.training.config import Config, DataConfig, NetworkConfig, OutputConfig, TrainerConfig
from snrecon.training.identity import check_same, settings_of

BASE = Config(DataConfig(["a"], []), network=NetworkConfig("varnet", {"unrolls": 2}))


def kept(config: Config, network: torch.nn.Module | None = None) -> dict[str, object]:
    return settings_of(config, network or VarNet(2, 3))


@pytest.mark.parametrize(
    ("other", "key"),
    [
        (replace(BASE, scheme="ssdu"), "scheme"),
        (replace(BASE, data=DataConfig(["b"], [])), "data.images"),
        (replace(BASE, data=DataConfig(["a"], ["b"])), "data.validation"),
        *((replace(BASE, trainer=TrainerConfig(**{key: value})), f"trainer.{key}")
          for key, value in (("seed", 5), ("batch", 5), ("interval", 5), ("curvature", 0.1),
                             ("weight_decay", 0.1), ("ema", 0.5))),
    ],
)
def test_another_training_is_named_by_its_key(other, key):
    with pytest.raises(InputError, match=rf"last\.ckpt: this run began with {key} = .*--replace"):
        check_same(Path("last.ckpt"), kept(BASE), kept(other))
    assert key in kept(BASE)


def test_limits_and_means_may_change():
    other = replace(BASE, output=OutputConfig("elsewhere", "else"), trainer=TrainerConfig(
        max_minutes=1.0, max_steps=7, patience=3, learning_rate=1.0, clip=2.0, devices=2,
        logger="tensorboard", threads=3, workers=2))
    check_same(Path("last.ckpt"), kept(BASE), kept(other))


def test_an_argument_that_is_the_default_of_a_network_need_not_be_given():
    network = VarNet()
    given = replace(BASE, network=NetworkConfig("varnet", {"features": network.features}))
    silent = replace(BASE, network=NetworkConfig("varnet"))
    check_same(Path("last.ckpt"), kept(given, network), kept(silent, network))
    with pytest.raises(InputError, match=r"network\.features"):
        check_same(Path("last.ckpt"), kept(given, network), kept(silent, VarNet(features=2)))


def test_what_was_not_kept_is_believed():
    check_same(Path("last.ckpt"), {}, kept(BASE))
    check_same(Path("last.ckpt"), {"of.another.version": 1}, kept(BASE))
    as_tuples = replace(BASE, data=DataConfig(("a",), ()))  # what a script may give
    check_same(Path("last.ckpt"), kept(BASE), kept(as_tuples))
