"""Network weights as safetensors files: no code is run to read them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from snrecon.errors import InputError
from snrecon.networks.autoencoder import Autoencoder
from snrecon.networks.e2e_varnet import E2EVarNet
from snrecon.networks.modl import MoDL
from snrecon.networks.ncsnpp import NCSNpp
from snrecon.networks.noise_predictor import NoisePredictor
from snrecon.networks.unet import Unet
from snrecon.networks.varnet import VarNet

FOLDER = Path(__file__).parent / "weights"
"""Where the shipped weights are, each with its model card."""

NETWORKS: dict[str, type[nn.Module]] = {
    "unet": Unet,
    "varnet": VarNet,
    "e2e_varnet": E2EVarNet,
    "modl": MoDL,
    "noise_predictor": NoisePredictor,
    "ncsnpp": NCSNpp,
    "autoencoder": Autoencoder,
}
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "unet": ("in_chans", "out_chans", "chans", "pools", "sense_steps",
             "consistency_steps"),
    "varnet": ("unrolls", "features"),
    "e2e_varnet": ("unrolls", "chans", "pools", "sens_chans", "sens_pools", "residual",
                   "espirit", "memory"),
    "modl": ("unrolls", "features", "layers", "iterations", "implicit"),
    "noise_predictor": ("features",),
    "ncsnpp": ("features", "multipliers", "blocks", "patch", "preconditioned"),
    "autoencoder": ("features", "latent", "size"),
}
"""Constructor arguments that a file keeps, all of them whole numbers."""
MAY_BE_ZERO = ("implicit", "residual", "sense_steps", "consistency_steps", "espirit",
               "memory", "preconditioned")
LIMITS = {"pools": 8, "sens_pools": 8, "layers": 64, "implicit": 1, "residual": 1, "memory": 1,
          "sense_steps": 1000, "consistency_steps": 1000, "espirit": 1000, "preconditioned": 1,
          "multipliers": 99_999_999, "blocks": 64, "patch": 16}
"""Largest values of arguments whose size grows the network by more than its square."""
LIMIT = 4096
"""Largest constructor argument believed: a foreign header must not ask for a giant network."""


def save_weights(network: nn.Module, path: str | Path, facts: Mapping[str, str] = {}) -> None:
    """Write a network with what is needed to build it again.

    Args:
        network: A network of :data:`NETWORKS`.
        path: ``.safetensors`` file; written beside and renamed.
        facts: Further metadata, text to text.

    Raises:
        InputError: for any other network.
    """
    from safetensors.torch import save_file

    name = next((n for n, kind in NETWORKS.items() if type(network) is kind), None)
    if name is None:
        raise InputError(
            f"{path}: only the package's own networks ({', '.join(NETWORKS)}) are written so that "
            f"they can be built again, not {type(network).__name__}; keep its state_dict instead."
        )
    arguments = {key: getattr(network, key) for key in ARGUMENTS[name]}
    tensors = {k: v.detach().float().cpu().contiguous() for k, v in network.state_dict().items()}
    metadata = {**facts, "network": name, "arguments": json.dumps(arguments)}
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata=metadata)
    partial.chmod(0o644)  # the library makes it unreadable for others
    partial.replace(path)


def shipped_weights(network: str) -> list[str]:
    """Names of the shipped weights of a network: ``["brain", ...]`` for ``"varnet"``."""
    files = FOLDER.glob(f"{network}-*.safetensors")
    return sorted(file.stem.removeprefix(f"{network}-") for file in files)


def find_weights(network: str, weights: str | Path) -> Path:
    """The file of a shipped name or a path.

    Raises:
        InputError: if there is no such name or file, or a shipped file is not what its card says.
    """
    text = str(weights)
    if re.fullmatch(r"[A-Za-z0-9_]+", text) and not Path(text).is_file():
        path = FOLDER / f"{network}-{text}.safetensors"
        if not path.is_file():
            known = ", ".join(shipped_weights(network)) or "none are shipped"
            raise InputError(f"there are no {network} weights named '{text}'; known: {known}; or "
                             "give the path of a .safetensors file.")
        _verify(path)
        return path
    path = Path(text)
    if not path.is_file():
        raise InputError(f"{path}: there is no such weights file; shipped {network} weights: "
                         f"{', '.join(shipped_weights(network)) or 'none'}.")
    return path


def _verify(path: Path) -> None:
    """Compare a shipped file with the SHA-256 in its model card."""
    card = path.with_suffix(".md")
    found = re.search(r"sha256: `?([0-9a-f]{64})", card.read_text(encoding="utf-8"))
    if found is None or checksum(path) != found.group(1):
        raise InputError(f"{path}: the weights are not the ones that {card.name} describes; "
                         "install the package again.")


def checksum(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def load_weights(network: str, weights: str | Path) -> nn.Module:
    """Build a network from a shipped name or a ``.safetensors`` file, ready for inference.

    Raises:
        InputError: if the file is missing, truncated, foreign, or of another network.
    """
    from safetensors import SafetensorError, safe_open

    path = find_weights(network, weights)
    try:
        with safe_open(str(path), framework="pt") as stream:
            metadata = stream.metadata() or {}
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: this is not a complete safetensors file.") from error
    if metadata.get("network") != network:
        raise InputError(f"{path}: these are not weights of this package's {network}; their header "
                         f"names {metadata.get('network', 'no network')!r}.")
    with torch.device("meta"):  # shapes without memory: the header may ask for anything
        module = NETWORKS[network](**_arguments(network, metadata, path))
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    if wanted != {key: tuple(value.shape) for key, value in tensors.items()}:
        raise InputError(f"{path}: the weights do not fit the {network} their header describes.")
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise InputError(f"{path}: the weights contain NaN or infinite values.")
    module.to_empty(device="cpu").load_state_dict(tensors)
    return module.eval().requires_grad_(False)


def _arguments(network: str, metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    try:
        arguments = json.loads(metadata.get("arguments", ""))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: the header of the weights is damaged.") from error
    good = isinstance(arguments, dict) and set(arguments) == set(ARGUMENTS[network]) and all(
        type(value) is int and (key not in MAY_BE_ZERO) <= value <= LIMITS.get(key, LIMIT)
        for key, value in arguments.items())
    if not good:
        raise InputError(f"{path}: the header of the weights is damaged.")
    return dict(arguments)
