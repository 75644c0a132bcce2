"""Values of a training configuration that have the right type but cannot work."""

from __future__ import annotations

import difflib
import math
from dataclasses import fields, is_dataclass
from typing import Any

from snrecon.errors import InputError
from snrecon.io.limits import memory_limit
from snrecon.training.config import PRIORS, SCHEMES, Config, NetworkConfig

LARGEST_GRID = 4096
"""Points along one side of a simulated measurement: images are prepared as squares of it."""
LARGEST_SEED = 2**32 - 1
"""Seeds are multiplied with numbers of steps, which must fit into 64 bits."""
LONGEST_NAME = 200
"""Bytes of a file name, which get an ending and, while it is written, another."""


def check(config: Config, name: str = "configuration") -> None:
    """Look at every value.

    Raises:
        InputError: naming the key.
    """
    from snrecon.physics.masks import MASK_KINDS

    _finite(config, name, "")
    simulation, trainer = config.simulation, config.trainer
    _one_of(name, "scheme", config.scheme, SCHEMES)
    channels = [config.network.settings.get(key, 2) for key in ("in_chans", "out_chans")]
    if config.network.name == "unet" and channels not in ([1, 1], [2, 2]):
        raise InputError(f"{name}: network.in_chans and network.out_chans must both be 2 (complex "
                         "images) or both be 1 (magnitudes).")
    if config.scheme == "ssdu" and config.network.name == "unet" and channels == [1, 1]:
        raise InputError(f"{name}: ssdu predicts k-space, which magnitudes do not determine; set "
                         "network.in_chans and network.out_chans to 2.")
    _check_prediction(config, name)
    _check_prior(config, name)
    _one_of(name, "ssdu.split", config.ssdu.split, ("gaussian", "lines", "uniform"))
    _one_of(name, "ssdu.loss", config.ssdu.loss, ("excess", "logarithmic", "normalised"))
    _check_network(config.network, name)
    _check_output(config.output.name, name)
    _one_of(name, "simulation.target", simulation.target, ("reference", "clean"))
    _one_of(name, "trainer.logger", trainer.logger, ("csv", "tensorboard"))
    _one_of(name, "trainer.precision", trainer.precision, ("auto", "float32", "bfloat16"))
    for kind in simulation.kinds:
        _one_of(name, "simulation.kinds", kind, MASK_KINDS)
    pairs = {f"simulation.{key}": getattr(simulation, key)
             for key in ("calibration", "coils", "snr")}
    pairs |= {"consistency.sigma": config.consistency.sigma, "prior.sigma": config.prior.sigma}
    for key, pair in pairs.items():
        if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
            raise InputError(f"{name}: {key} must be two rising positive numbers.")
    if simulation.calibration[1] > 1:
        raise InputError(f"{name}: simulation.calibration must be shares of at most 1.")
    if any(len(grid) != 2 or min(grid) < 16 or max(grid) > LARGEST_GRID
           for grid in simulation.grids):
        raise InputError(f"{name}: simulation.grids must be pairs (ky, kx) of 16 to {LARGEST_GRID} "
                         "points.")
    sizes = {max(grid) for grid in simulation.grids}
    # As image_pools shares them out, single precision; measured scans have grids of their own.
    pools = 4 * sum(max(1, simulation.pool // len(sizes)) * size**2 for size in sizes)
    if pools > memory_limit():
        raise InputError(f"{name}: simulation.pool = {simulation.pool} images of the size of "
                         f"simulation.grids take {pools / 2**30:.0f} GiB, more than half of this "
                         "machine's memory.")
    shares = {"simulation.shapes": simulation.shapes, "ssdu.share": config.ssdu.share,
              "consistency.labelled": config.consistency.labelled,
              "consistency.balance": config.consistency.balance,
              "prior.even": config.prior.even, "prior.signed": config.prior.signed,
              "trainer.ema": trainer.ema}
    for key, share in shares.items():
        if not 0 <= share <= 1:
            raise InputError(f"{name}: {key} must lie between 0 and 1.")
    if not 0 < config.ssdu.share < 1:
        raise InputError(f"{name}: ssdu.share must lie between 0 and 1, both excluded.")
    if not 0 <= config.ssdu.smallest_share <= config.ssdu.share:
        raise InputError(f"{name}: ssdu.smallest_share must lie between 0 and ssdu.share.")
    if config.scheme in ("noise2recon", "vortex") and not (
            config.consistency.labelled and config.consistency.balance):
        raise InputError(f"{name}: consistency.labelled and consistency.balance must be above 0: "
                         f"{config.scheme} learns what images look like from fully sampled "
                         "measurements.")
    if any(r < 1 for r in simulation.accelerations):
        raise InputError(f"{name}: simulation.accelerations must be at least 1.")
    lists = {"data.images": config.data.images, "simulation.grids": simulation.grids,
             "simulation.kinds": simulation.kinds,
             "simulation.accelerations": simulation.accelerations}
    for key, values in lists.items():
        if not values:
            raise InputError(f"{name}: {key} is empty.")
    positive: dict[str, float] = {
        "trainer.batch": trainer.batch, "trainer.interval": trainer.interval,
        "trainer.learning_rate": trainer.learning_rate, "trainer.clip": trainer.clip,
        "trainer.devices": trainer.devices, "simulation.pool": simulation.pool,
        "consistency.weight": config.consistency.weight,
        "consistency.shots": config.consistency.shots, "prior.centre": config.prior.centre,
        "prior.spread": config.prior.spread, "prior.divergence": config.prior.divergence}
    positive |= {f"data.voxel_sizes.{part}": size
                 for part, size in config.data.voxel_sizes.items()}
    for key, value in positive.items():
        if value <= 0:
            raise InputError(f"{name}: {key} must be positive, but it is {value}.")
    at_least_zero: dict[str, float] = {
        f"trainer.{key}": getattr(trainer, key)
        for key in ("patience", "curvature", "curvature_limit", "weight_decay", "warmup", "threads",
                    "workers")}
    at_least_zero |= {"data.columns": config.data.columns,
                      "simulation.map_error": simulation.map_error}
    at_least_zero |= {f"data.first_slice.{part}": first
                      for part, first in config.data.first_slice.items()}
    for key, value in at_least_zero.items():
        if value < 0:
            raise InputError(f"{name}: {key} must not be negative, but it is {value}.")
    if not 0 <= trainer.seed <= LARGEST_SEED:
        raise InputError(f"{name}: trainer.seed must lie between 0 and {LARGEST_SEED}, but it is "
                         f"{trainer.seed}.")
    if trainer.patience and not config.data.validation:
        raise InputError(f"{name}: trainer.patience needs data.validation.")
    if trainer.max_minutes <= 0 and trainer.max_steps <= 0:
        raise InputError(f"{name}: set trainer.max_minutes or trainer.max_steps.")


def _finite(value: Any, name: str, key: str) -> None:
    """TOML has nan and inf, of which comparisons with limits do not see every one."""
    if is_dataclass(value):
        for item in fields(value):
            _finite(getattr(value, item.name), name, f"{key}.{item.name}".lstrip("."))
    elif isinstance(value, dict):
        for part, inner in value.items():
            _finite(inner, name, f"{key}.{part}")
    elif isinstance(value, list):
        for inner in value:
            _finite(inner, name, key)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name}: {key} must be a finite number, but it is {value}.")


def _check_prediction(config: Config, name: str) -> None:
    predicts, settings = config.scheme == "noise_predictor", config.reconstruction
    if predicts != (config.network.name == "noise_predictor"):
        raise InputError(f"{name}: the scheme noise_predictor and the network noise_predictor "
                         "belong together.")
    if predicts != bool(settings.method):
        raise InputError(f"{name}: reconstruction.method, whose noise is predicted, belongs to the "
                         "scheme noise_predictor, which needs it.")
    if settings.measurements < 8 or settings.probes < 4:
        raise InputError(f"{name}: reconstruction.measurements must be at least 8 and "
                         "reconstruction.probes at least 4.")
    alone = predicts or config.scheme in PRIORS
    if alone and (config.trainer.patience or config.trainer.devices > 1
                  or config.trainer.curvature or config.trainer.logger != "csv"):
        raise InputError(f"{name}: trainer.patience, devices, curvature and logger are not for the "
                         f"scheme {config.scheme}.")
    if predicts and config.trainer.initial:
        raise InputError(f"{name}: trainer.initial is not for the scheme noise_predictor.")


def _check_prior(config: Config, name: str) -> None:
    wanted = PRIORS.get(config.scheme)
    if wanted != (config.network.name if config.network.name in PRIORS.values() else None):
        pairs = ", ".join(f"{scheme} with {network}" for scheme, network in PRIORS.items())
        raise InputError(f"{name}: priors are trained by a scheme and network that belong "
                         f"together: {pairs}.")


def _check_network(network: NetworkConfig, name: str) -> None:
    from snrecon.networks.store import ARGUMENTS, LIMIT, LIMITS, MAY_BE_ZERO

    _one_of(name, "network.name", network.name, tuple(ARGUMENTS))
    known = ARGUMENTS[network.name]
    for key, value in network.settings.items():
        if type(value) is not int:
            raise InputError(f"{name}: network.{key} must be a whole number, not {value!r}.")
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise InputError(f"{name}: there is no setting network.{key} for {network.name}; did "
                             f"you mean network.{close}?")
        if value < 0 or (value == 0 and key not in MAY_BE_ZERO):
            raise InputError(f"{name}: network.{key} must be positive, but it is {value}.")
        largest = LIMITS.get(key, LIMIT)  # who reads the weights believes no more
        if value > largest:
            raise InputError(f"{name}: network.{key} must be at most {largest}, but it is {value}.")


def _check_output(file: str, name: str) -> None:
    blank = bool(file) and not file.strip()
    if blank or set(file) & set("/\\\0") or len(file.encode()) > LONGEST_NAME:
        raise InputError(f"{name}: output.name must be a file name without folder and ending, of "
                         f"at most {LONGEST_NAME} bytes, but it is {file[:40]!r}; output.folder "
                         "says where it goes.")


def _one_of(name: str, key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{name}: {key} = '{value}' is not known; choose {', '.join(known)}.")
