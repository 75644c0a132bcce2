"""Small random networks of every kind, lively enough that nothing about them is linear."""

from __future__ import annotations

import torch
from torch import nn

from snrecon.networks.e2e_varnet import E2EVarNet
from snrecon.networks.modl import MoDL
from snrecon.networks.unet import Unet
from snrecon.networks.varnet import VarNet


def unet(channels: int = 2, seed: int = 0, **options: int) -> Unet:
    torch.manual_seed(seed)
    return Unet(channels, channels, 3, 2, **options).requires_grad_(False)


def e2e_varnet(seed: int = 0, **options: int) -> E2EVarNet:
    torch.manual_seed(seed)
    network = E2EVarNet(2, 3, 2, 2, 2, **options).requires_grad_(False)
    for part in network.modules():
        if options.get("residual") and isinstance(part, Unet):
            part.start_small(0.3)  # lively
    return network


def modl(implicit: int = 0, seed: int = 0) -> MoDL:
    torch.manual_seed(seed)
    network = MoDL(2, 4, 3, 4, implicit).requires_grad_(False)
    for layer in network.cnn:
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        layer.bias.normal_(std=0.1)
    network.cnn[-1].weight.normal_(std=0.1)
    return network


def varnet(seed: int = 0) -> VarNet:
    torch.manual_seed(seed)
    network = VarNet(2, 4).requires_grad_(False)
    for name, parameter in network.named_parameters():
        if "bias" in name or "leave.weight" in name:
            parameter.normal_(std=0.1)
    return network
