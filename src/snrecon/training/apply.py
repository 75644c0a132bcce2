"""The networks of the package built from a configuration and applied to training batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from snrecon.errors import InputError
from snrecon.networks.e2e_varnet import E2EVarNet, combine_coils
from snrecon.networks.modl import MoDL
from snrecon.networks.regularised import consistent_image, sense_image
from snrecon.networks.sensitivity import calibration_samples
from snrecon.networks.store import ARGUMENTS, NETWORKS, load_weights
from snrecon.networks.unet import Unet, complex_unet, magnitude_unet
from snrecon.networks.varnet import VarNet
from snrecon.training.batch import Batch
from snrecon.training.config import Config, NetworkConfig
from snrecon.training.gram import batch_gram

MAY_DIFFER = ("drop", "iterations", "implicit", "unrolls")
"""Settings that weights may be trained further with, if their shapes allow it."""


STEPS = ("sense_steps", "consistency_steps", "espirit")
"""Numbers of steps of what a network has, or has not: 0."""


def build(config: NetworkConfig) -> nn.Module:
    """The network of a configuration with random weights, from the global generator."""
    return NETWORKS[config.name](**config.settings)


def start_from(config: Config, *networks: nn.Module) -> None:
    """Give networks the trained weights that a run begins with.

    Raises:
        InputError: if there are no such weights, or they are of a network of another size or kind.
    """
    weights = config.trainer.initial
    given = load_weights(config.network.name, weights)
    for network in networks:
        other = other_setting(given, network)
        if other is not None:
            raise InputError(f"the weights {weights!r} do not fit [network]: they are of a network "
                             f"with {other}.")
        try:
            network.load_state_dict(given.state_dict())
        except RuntimeError as error:
            raise InputError(f"the weights {weights!r} do not fit [network].") from error


def other_setting(given: nn.Module, network: nn.Module) -> str | None:
    """The setting by which a network computes something else than ``network`` with the same
    weights, though all shapes may fit; None if there is none."""
    kind = next(name for name, one in NETWORKS.items() if type(network) is one)
    for name in ARGUMENTS[kind]:
        one, other = getattr(given, name), getattr(network, name)
        more_or_fewer = name in STEPS and one and other
        if one != other and name not in MAY_DIFFER and not more_or_fewer:
            return f"{name} = {one}, not {other}"
    return None


def apply(network: nn.Module, batch: Batch) -> Tensor:
    """Images ``(batch, ky, kx)`` in SNR units.

    Complex, comparable with ``batch.target``; real and comparable with its modulus for a U-Net of
    one channel. The E2E-VarNet makes maps of its own, whose common phase no one can know: its
    predicted k-space is combined with the maps of the batch, as the target is.
    """
    if isinstance(network, VarNet | MoDL):
        answer: Tensor = network(batch.b, batch_gram(batch.maps, batch.mask), batch.support)
        return answer
    if isinstance(network, Unet):
        if network.in_chans == 1:
            return magnitude_unet(network, batch.b.abs())
        gram = batch_gram(batch.maps, batch.mask)
        z = sense_image(gram, batch.b, network.sense_steps)
        image = complex_unet(network, z, batch.support)
        if network.consistency_steps == 0:
            return image
        return consistent_image(
            gram, batch.b, image, network.lamda, network.consistency_steps)
    assert isinstance(network, E2EVarNet)
    calibration = batch.calibration
    if calibration is None:
        calibration = torch.stack([calibration_samples(mask) for mask in batch.mask])
    kspace, _ = network.predict(batch.kspace, batch.mask, calibration)
    return combine_coils(kspace, batch.maps)


def target_of(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a complex target is to this network: itself, or its modulus."""
    if isinstance(network, Unet) and network.in_chans == 1:
        return torch.abs
    return lambda target: target
