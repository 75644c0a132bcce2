"""score-MRI's published NCSN++ checkpoints as networks of this package.

The published networks keep their layers in one list, ``all_modules``, in the order in which they
are used; sizes are read off the shapes. Checkpoints hold the weights of the last step (``model``)
and, without names but in the same order, their running average (``ema``), which is what the
published sampling uses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from snrecon.errors import InputError
from snrecon.networks.convert import loaded, read
from snrecon.networks.ncsnpp import Attention, NCSNpp, Residual, Shrink
from snrecon.networks.score import PUBLISHED_RANGE

_RESIDUAL = {"norm1": "GroupNorm_0", "conv1": "Conv_0", "level": "Dense_0", "norm2": "GroupNorm_1",
             "conv2": "Conv_1", "skip": "Conv_2"}
_ATTENTION = {"norm": "GroupNorm_0", "query": "NIN_0", "key": "NIN_1", "value": "NIN_2",
              "out": "NIN_3"}
MOST = 12
"""Largest multiplier and number of blocks believed."""


def ncsnpp_from_published(source: str | Path | Mapping[str, Any]) -> NCSNpp:
    """The network of a score-MRI checkpoint: the averaged weights, where it has them.

    Args:
        source: File, or what was loaded from one: a checkpoint with ``model`` and ``ema``, or a
            plain state dict.

    Raises:
        InputError: if the source is no such checkpoint.
    """
    name = "the state dict"
    content: Any = source
    if isinstance(source, str | Path):
        name, content = str(source), read(Path(source))
    if not isinstance(content, Mapping):
        raise InputError(f"{name}: this holds no state dict of a network.")
    model = content.get("model", content)
    if not isinstance(model, Mapping):
        raise InputError(f"{name}: this holds no state dict of a network.")
    state = {str(key).removeprefix("module."): value for key, value in model.items()
             if isinstance(value, Tensor)}
    levels = state.pop("sigmas", None)
    low, high = PUBLISHED_RANGE
    if levels is not None and levels.numel() > 1:
        low, high = float(levels.min()), float(levels.max())
    _average(state, content.get("ema"), name)
    network = NCSNpp(*_sizes(state, name), low=low, high=high)
    names = _names(network)
    ours = {"range": network.get_buffer("range")}
    for key, value in state.items():
        place, _, rest = key.rpartition(".")
        if place not in names:
            raise InputError(f"{name}: the published network has no weight '{key}'.")
        dense = isinstance(network.get_submodule(names[place]) if names[place] else network,
                           nn.Linear)
        if rest in ("W", "b") and names[place]:
            rest, value = ("weight", value.T) if rest == "W" else ("bias", value)
        elif rest == "W":
            rest = "frequencies"
        elif dense and rest not in ("weight", "bias"):
            raise InputError(f"{name}: the published network has no weight '{key}'.")
        ours[f"{names[place]}.{rest}".lstrip(".")] = value
    return loaded(network, ours, name)


def _average(state: dict[str, Tensor], ema: Any, name: str) -> None:
    """Put the running average into the state; the embedding's frequencies have none."""
    shadow = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    if shadow is None:
        return
    keys = [key for key in state if not key.endswith("all_modules.0.W")]
    if len(keys) != len(shadow) or any(
            state[key].shape != value.shape for key, value in zip(keys, shadow, strict=True)):
        raise InputError(f"{name}: the running average does not fit the weights of the checkpoint.")
    state.update(zip(keys, shadow, strict=True))


def _sizes(state: Mapping[str, Tensor], name: str) -> tuple[int, int, int]:
    """Features, multipliers and blocks.

    Raises:
        InputError: if the names are not those of the published network.
    """
    total = 1 + max((int(m.group(1)) for key in state
                     if (m := re.match(r"all_modules\.(\d+)\.", key))), default=-1)
    embedding = state.get("all_modules.0.W")
    if embedding is None or embedding.ndim != 1 or total < 8:
        raise InputError(f"{name}: these are not the published network's weights; "
                         "'all_modules.0.W' is missing.")
    features = embedding.shape[0]
    widths, blocks = [], []
    seen = 0
    for index in range(4, total):
        inside = f"all_modules.{index}."
        if inside + "NIN_0.W" in state:  # attention: the middle, whose first block was counted
            blocks.append(seen - 1)
            break
        if inside + "Conv2d_0.weight" in state:
            blocks.append(seen - 1)  # the last one halves
            seen = 0
        elif inside + "Conv_1.weight" in state:
            if seen == 0:
                widths.append(int(state[inside + "Conv_1.weight"].shape[0]))
            seen += 1
        else:
            break
    multipliers = [width / features for width in widths]
    same = len(blocks) == len(widths) and len(set(blocks)) == 1 and 0 < blocks[0] <= MOST
    if not same or not all(m in range(1, 10) for m in multipliers) or features > 1024:
        raise InputError(f"{name}: the layers are not in the order of the published network.")
    return features, int("".join(f"{m:.0f}" for m in multipliers)), blocks[0]


def _names(network: NCSNpp) -> dict[str, str]:
    """Published names of layers, without ``.weight``, to names of ours."""
    number = count()
    names = {f"all_modules.{next(number)}": ""}

    def add(place: str) -> None:
        prefix = f"all_modules.{next(number)}"
        layer = network.get_submodule(place)
        inner = _RESIDUAL if isinstance(layer, Residual) else (
            _ATTENTION if isinstance(layer, Attention) else {})
        if isinstance(layer, Shrink):
            names[f"{prefix}.Conv2d_0"] = f"{place}.conv"
        elif inner:
            for own, published in inner.items():
                if getattr(layer, own) is not None:
                    names[f"{prefix}.{published}"] = f"{place}.{own}"
        else:
            names[prefix] = place

    for place in ("embed1", "embed2", "first"):
        add(place)
    for level in range(network.levels):
        for block in range(network.blocks):
            add(f"down.{level}.{block}")
        if level < network.levels - 1:
            add(f"shrink.{level}")
            add(f"pyramid.{level}")
    for part in range(3):
        add(f"middle.{part}")
    for level in range(network.levels):
        for block in range(network.blocks + 1):
            add(f"up.{level}.{block}")
        if level < network.levels - 1:
            add(f"grow.{level}")
    add("norm")
    add("last")
    return names
