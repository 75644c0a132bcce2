"""Published weights as networks of this package: fastMRI's U-Net and E2E-VarNet, and the score
networks that :mod:`snrecon.networks.convert_ncsnpp` knows.

The published state dicts are loaded by name. Files are those of ``torch.save``: a plain state dict,
or a Lightning checkpoint, read without running any code from it.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from snrecon.errors import InputError
from snrecon.networks.e2e_varnet import E2EVarNet
from snrecon.networks.unet import Unet

SUFFIXES = (".pt", ".pth", ".ckpt")
"""Names of torch files end like this."""
DEEPEST = 8
"""Most levels believed: the width of a U-Net doubles with each, so that a foreign file could ask
for more memory than there is."""
_Network = TypeVar("_Network", bound=nn.Module)
_OUTER = ("module.", "model.")
_IGNORED = re.compile(r"cascades\.\d+\.zero")  # a constant that older versions stored


def is_torch_file(path: str | Path) -> bool:
    """Whether a path looks like a published torch file rather than safetensors."""
    return str(path).lower().endswith(SUFFIXES)


def convert(network: str, source: str | Path | Mapping[str, Any]) -> nn.Module:
    """The network of published weights, ready for inference. ``unet`` and ``e2e_varnet`` are marked
    ``published``, which makes reconstructions with them give the data as the weights want them.

    Args:
        network: ``"unet"``, ``"e2e_varnet"`` or ``"ncsnpp"``.
        source: File, or a dict that was loaded from one.

    Raises:
        InputError: for another network, or a file or dict that does not hold its weights.
    """
    if network in ("unet", "e2e_varnet"):
        found = {"unet": unet_from_fastmri, "e2e_varnet": e2e_varnet_from_fastmri}[network](source)
        found.__dict__["published"] = True
        return found
    if network == "ncsnpp":
        from snrecon.networks.convert_ncsnpp import ncsnpp_from_published

        return ncsnpp_from_published(source)
    raise InputError(
        f"there are no published torch weights for {network}, only for unet, e2e_varnet and "
        "ncsnpp (the method score); give a .safetensors file."
    )


def unet_from_fastmri(source: str | Path | Mapping[str, Any]) -> Unet:
    """The U-Net of a ``fastmri.models.Unet`` state dict, with or without Lightning's ``unet.``.

    Its size is read off the shapes. The magnitude networks of the fastMRI demo have one channel.

    Raises:
        InputError: if the source is no such state dict.
    """
    name, state = _plain(source, "unet.", "down_sample_layers.")
    first = _shape(state, "down_sample_layers.0.layers.0.weight", name)
    pools = _depth(state, "", name)
    last = _shape(state, f"up_conv.{pools - 1}.1.weight", name)
    network = Unet(first[1], last[0], first[0], pools)
    return loaded(network, state, name)


def e2e_varnet_from_fastmri(source: str | Path | Mapping[str, Any]) -> E2EVarNet:
    """The network of a ``fastmri.models.VarNet`` state dict, with or without Lightning's
    ``varnet.``; its size is read off the shapes.

    Raises:
        InputError: if the source is no such state dict.
    """
    name, state = _plain(source, "varnet.", "sens_net.")
    inner, sens = "cascades.0.model.unet.", "sens_net.norm_unet.unet."
    network = E2EVarNet(
        unrolls=_count(state, r"cascades\.(\d+)\."),
        chans=_shape(state, inner + "down_sample_layers.0.layers.0.weight", name)[0],
        pools=_depth(state, inner, name),
        sens_chans=_shape(state, sens + "down_sample_layers.0.layers.0.weight", name)[0],
        sens_pools=_depth(state, sens, name),
    )
    return loaded(network, state, name)


def _plain(
    source: str | Path | Mapping[str, Any], prefix: str, begins: str
) -> tuple[str, dict[str, Tensor]]:
    """What to call the source, and its tensors without prefixes.

    Prefixes are taken off until a name begins with ``begins``. Once one of them is ``prefix``, a
    Lightning module was stored, and what lies outside the network (losses, metrics) is left out.
    """
    name = "the state dict"
    content: Any = source
    if isinstance(source, str | Path):
        name, content = str(source), read(Path(source))
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise InputError(f"{name}: this holds no state dict of a network.")
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    for outer in (*_OUTER, prefix, *_OUTER):
        if any(key.startswith(begins) for key in state):
            break
        inside = {k.removeprefix(outer): v for k, v in state.items() if k.startswith(outer)}
        state = inside or state
    return name, {key: value for key, value in state.items() if not _IGNORED.fullmatch(key)}


def read(path: Path) -> Any:
    """What a torch file holds, read without running any code from it.

    Raises:
        InputError: if it is missing, damaged, or more than weights.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such weights file.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError,
            zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: this is not a complete torch file of weights alone; save the network's "
            "state_dict() with torch.save."
        ) from error


def _shape(state: Mapping[str, Tensor], key: str, name: str) -> tuple[int, ...]:
    if key not in state or state[key].ndim != 4:
        raise InputError(f"{name}: these are not the published network's weights; '{key}' is "
                         f"{'of another shape' if key in state else 'missing'}.")
    return tuple(state[key].shape)


def _depth(state: Mapping[str, Tensor], prefix: str, name: str) -> int:
    """Poolings of the U-Net whose weights begin with ``prefix``."""
    pools = _count(state, re.escape(prefix) + r"down_sample_layers\.(\d+)\.")
    if pools > DEEPEST:
        raise InputError(f"{name}: a U-Net of {pools} levels is none of the published networks.")
    return pools


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({m.group(1) for key in state if (m := re.match(pattern, key))})


def loaded(network: _Network, state: Mapping[str, Tensor], name: str) -> _Network:
    """The network with these weights, after every name and shape was compared."""
    wanted = network.state_dict()
    for key in (*wanted, *state):
        if key not in state:
            raise InputError(f"{name}: the weight '{key}' of the published network is missing.")
        if key not in wanted:
            raise InputError(f"{name}: the published network has no weight '{key}'.")
        if state[key].shape != wanted[key].shape:
            raise InputError(
                f"{name}: '{key}' has shape {tuple(state[key].shape)}, but the published network "
                f"has {tuple(wanted[key].shape)}."
            )
        if not bool(torch.isfinite(state[key]).all()):
            raise InputError(f"{name}: '{key}' contains NaN or infinite values.")
    network.load_state_dict(state)
    network.eval().requires_grad_(False)
    return network
