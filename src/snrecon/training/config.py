"""The typed training configuration, read from TOML."""

from __future__ import annotations

import difflib
import math
import tomllib
import types
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from snrecon.errors import InputError

SCHEMES = ("supervised", "ssdu", "noise2recon", "vortex", "noise_predictor")


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from."""

    images: list[str]
    """Magnitude images, under SNRECON_DATA or own paths, from which measurements are simulated:
    ``"file.npz:key"``, ``(slice, rows, columns)``, NIfTI files, folders of DICOM images; two keys
    joined by ``+`` (``"file.npz:T1w+PDw"``) are mixed with random weights. Or measured scans:
    folders of fastMRI files, or made by ``snrecon prepare``."""
    validation: list[str]
    """The same, of other subjects."""
    columns: int = 0
    """Of measured scans: width of the random strips along kx to train on; 0: whole slices."""
    voxel_sizes: dict[str, float] = field(default_factory=dict)
    """Pixel size in mm of a source, by any part of its name; 1 where not given."""
    first_slice: dict[str, int] = field(default_factory=dict)
    """First slice used of a source, by any part of its name; 0 where not given."""


@dataclass(frozen=True)
class SimulationConfig:
    """What measurements are simulated from the images."""

    accelerations: list[float] = field(default_factory=lambda: [2.0, 3.0, 4.0, 6.0, 8.0])
    """Nominal accelerations, drawn with equal weights."""
    kinds: list[str] = field(
        default_factory=lambda: [
            "random", "random", "random", "equispaced_fraction", "gaussian1d", "poisson1d",
            "uniform1d", "poisson", "gaussian2d",
        ]
    )
    """Mask kinds, drawn with equal weights; repeat one to draw it more often."""
    calibration: list[float] = field(default_factory=lambda: [0.04, 0.10])
    """Range of the fully sampled share of the phase encodings (side of a block for 2D kinds)."""
    grids: list[list[int]] = field(
        default_factory=lambda: [[128, 128], [128, 96], [160, 80], [192, 64], [256, 64]]
    )
    """Training grids ``(ky, kx)``. Narrow ones are strips of a wider image: with lines along kx
    fully sampled, a strip is a complete problem of its own."""
    coils: list[int] = field(default_factory=lambda: [4, 12])
    """Range of the number of coils."""
    snr: list[float] = field(default_factory=lambda: [3.0, 300.0])
    """Range (log-uniform) of the mean SNR of the fully sampled head, complex noise SD 1."""
    map_error: float = 0.08
    """Largest relative RMS error of the coil maps given to the reconstruction."""
    target: str = "reference"
    """``reference``: the fully sampled matched-filter image, whose noise in the acquired samples
    is kept (that of the other samples cannot be known and averages out); ``clean``: no noise."""
    shapes: float = 0.15
    """Share of the images that are random ellipses instead, flat inside, as heads in proton-density
    contrast and phantoms are."""
    pool: int = 1200
    """Band-limited images prepared beforehand."""


@dataclass(frozen=True)
class NetworkConfig:
    """Which network, and the arguments that it is built with.

    In TOML the arguments stand beside the name: ``name = "modl"``, ``unrolls = 6``.
    """

    name: str = "varnet"
    settings: dict[str, int] = field(default_factory=dict)
    """Constructor arguments by name; what is not given has the network's own default."""


@dataclass(frozen=True)
class TrainerConfig:
    """How it is optimised."""

    max_minutes: float = 60.0
    """Wall-clock limit; the learning rate reaches its end at this time. 0: no limit."""
    max_steps: int = 0
    """Limit in steps; the learning rate reaches its end there if that is sooner. 0: no limit."""
    batch: int = 4
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    warmup: int = 200
    """Steps of linear warm-up."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    ema: float = 0.998
    """Decay per step of the averaged weights, which are what is exported."""
    precision: str = "auto"
    """``auto``: bfloat16 convolutions where the processor multiplies them natively; ``float32``;
    ``bfloat16``. The physics is always single precision."""
    interval: int = 250
    """Steps between validations, checkpoints and intermediate exports."""
    patience: int = 0
    """Stop after so many validations without a smaller mean error, and keep the best weights; 0:
    never, and the last weights are kept."""
    devices: int = 1
    """GPUs (or processes on a CPU) that share every interval's batches."""
    logger: str = "csv"
    """``csv``: ``log.csv`` only; ``tensorboard``: beside it, curves for TensorBoard."""
    initial: str = ""
    """Weights to start from: a shipped name or a ``.safetensors`` file. Empty: at random."""
    seed: int = 0
    threads: int = 0
    """Processor threads; 0: as many as there are."""
    workers: int = 1
    """Processes that simulate ahead; 0: in the training process."""


@dataclass(frozen=True)
class SSDUConfig:
    """Scheme ``ssdu``: which samples are predicted from the others."""

    share: float = 0.4
    """Share of the samples."""
    smallest_share: float = 0.0
    """If above 0, the share is drawn between this and ``share`` for every batch."""
    split: str = "uniform"
    """``uniform``; ``gaussian``: denser towards the centre of k-space; ``lines``: whole lines."""
    loss: str = "normalised"
    """``normalised`` L1 plus L2; ``logarithmic``: every measurement with the same weight;
    ``excess``: the same of what exceeds the samples' own noise."""


@dataclass(frozen=True)
class ConsistencyConfig:
    """Schemes ``noise2recon`` and ``vortex``: what disturbed measurements must agree on."""

    labelled: float = 0.25
    """Share of the images whose fully sampled measurement is known."""
    balance: float = 0.5
    """Of simulated measurements: share that is of those images. Measured scans come as they are."""
    weight: float = 0.1
    """Weight of the consistency term."""
    sigma: list[float] = field(default_factory=lambda: [0.2, 0.5])
    """Range of the added noise, relative to the root mean square of the zero-filled image."""
    motion: float = 1.0
    """``vortex``: largest shift between shots, voxels."""
    shots: int = 4
    """``vortex``: shots that the lines are spread over."""


@dataclass(frozen=True)
class ReconstructionConfig:
    """Scheme ``noise_predictor``: whose noise is predicted, and from how many Jacobian products."""

    method: str = ""
    """A method as on the command line (``"varnet:brain"``, ``"modl:runs/mine.safetensors"``), or
    one's own: ``"package.module:name"``, a reconstruction or a function of k-space, found from the
    folder where training is started."""
    measurements: int = 400
    """Simulated or measured scans that are reconstructed."""
    probes: int = 16
    """Jacobian products for each of them."""


@dataclass(frozen=True)
class OutputConfig:
    """Where results go."""

    folder: str = "runs/varnet"
    name: str = "varnet"
    """File name of the weights, without ending."""


@dataclass(frozen=True)
class Config:
    """A whole training run."""

    data: DataConfig
    scheme: str = "supervised"
    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    ssdu: SSDUConfig = field(default_factory=SSDUConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    output: OutputConfig = field(default_factory=OutputConfig)


def load_config(path: str | Path) -> Config:
    """Read a configuration file.

    Raises:
        InputError: if the file cannot be read, is not TOML, has an unknown or ill-typed key, or a
            value that makes no sense.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise InputError(f"{path}: the configuration cannot be read: {reason}.") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: this is not valid TOML: {error}.") from error
    network = table.get("network")
    if isinstance(network, dict):
        rest = {key: value for key, value in network.items() if key != "name"}
        table["network"] = {**{k: v for k, v in network.items() if k == "name"}, "settings": rest}
    config: Config = _build(Config, table, str(path), "")
    check(config, str(path))
    return config


def check(config: Config, name: str = "configuration") -> None:
    """Values that have the right type but cannot work.

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
    _one_of(name, "ssdu.split", config.ssdu.split, ("gaussian", "lines", "uniform"))
    _one_of(name, "ssdu.loss", config.ssdu.loss, ("excess", "logarithmic", "normalised"))
    _check_network(config.network, name)
    _one_of(name, "simulation.target", simulation.target, ("reference", "clean"))
    _one_of(name, "trainer.logger", trainer.logger, ("csv", "tensorboard"))
    _one_of(name, "trainer.precision", trainer.precision, ("auto", "float32", "bfloat16"))
    for kind in simulation.kinds:
        _one_of(name, "simulation.kinds", kind, MASK_KINDS)
    pairs = {f"simulation.{key}": getattr(simulation, key)
             for key in ("calibration", "coils", "snr")}
    for key, pair in {**pairs, "consistency.sigma": config.consistency.sigma}.items():
        if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
            raise InputError(f"{name}: {key} must be two rising positive numbers.")
    if any(len(grid) != 2 or min(grid) < 16 for grid in simulation.grids):
        raise InputError(f"{name}: simulation.grids must be pairs (ky, kx) of at least 16 points.")
    shares = {"simulation.shapes": simulation.shapes, "ssdu.share": config.ssdu.share,
              "consistency.labelled": config.consistency.labelled,
              "consistency.balance": config.consistency.balance}
    for key, share in shares.items():
        if not 0 <= share <= 1:
            raise InputError(f"{name}: {key} must lie between 0 and 1.")
    if not 0 < config.ssdu.share < 1:
        raise InputError(f"{name}: ssdu.share must lie between 0 and 1, both excluded.")
    if not 0 <= config.ssdu.smallest_share <= config.ssdu.share:
        raise InputError(f"{name}: ssdu.smallest_share must lie between 0 and ssdu.share.")
    if any(r < 1 for r in simulation.accelerations):
        raise InputError(f"{name}: simulation.accelerations must be at least 1.")
    lists = {"data.images": config.data.images, "simulation.grids": simulation.grids,
             "simulation.kinds": simulation.kinds,
             "simulation.accelerations": simulation.accelerations}
    for key, values in lists.items():
        if not values:
            raise InputError(f"{name}: {key} is empty.")
    positive = {"trainer.batch": trainer.batch, "trainer.interval": trainer.interval,
                "trainer.learning_rate": trainer.learning_rate, "trainer.clip": trainer.clip,
                "trainer.devices": trainer.devices,
                "simulation.pool": simulation.pool,
                "consistency.weight": config.consistency.weight,
                "consistency.shots": config.consistency.shots}
    for key, value in positive.items():
        if value <= 0:
            raise InputError(f"{name}: {key} must be positive, but it is {value}.")
    if trainer.patience < 0:
        raise InputError(f"{name}: trainer.patience must not be negative.")
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
    if predicts and (config.trainer.patience or config.trainer.devices > 1
                     or config.trainer.initial or config.trainer.logger != "csv"):
        raise InputError(f"{name}: trainer.patience, devices, initial and logger are not for the "
                         "scheme noise_predictor.")


def _check_network(network: NetworkConfig, name: str) -> None:
    from snrecon.networks.store import ARGUMENTS, MAY_BE_ZERO

    _one_of(name, "network.name", network.name, tuple(ARGUMENTS))
    known = ARGUMENTS[network.name]
    for key, value in network.settings.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise InputError(f"{name}: there is no setting network.{key} for {network.name}; did "
                             f"you mean network.{close}?")
        if value < 0 or (value == 0 and key not in MAY_BE_ZERO):
            raise InputError(f"{name}: network.{key} must be positive, but it is {value}.")


def _one_of(name: str, key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{name}: {key} = '{value}' is not known; choose {', '.join(known)}.")


def _build(kind: Any, table: Any, name: str, prefix: str) -> Any:
    """An instance of the dataclass ``kind`` from a TOML table."""
    if not isinstance(table, dict):
        raise InputError(f"{name}: {prefix.rstrip('.')} must be a table, not {table!r}.")
    known = {f.name: f for f in fields(kind)}
    hints = get_type_hints(kind)
    values = {}
    for key, value in table.items():
        if key not in known:
            close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.0)
            hint = f" did you mean {prefix}{close[0]}?" if close else ""
            raise InputError(f"{name}: there is no setting {prefix}{key};{hint}")
        values[key] = _convert(hints[key], value, name, f"{prefix}{key}")
    for key, item in known.items():
        required = item.default is MISSING and item.default_factory is MISSING
        if required and key not in values:
            raise InputError(f"{name}: the setting {prefix}{key} is missing.")
    return kind(**values)


def _convert(kind: Any, value: Any, name: str, key: str) -> Any:
    """``value`` as the annotated type, whole numbers counting as floats."""
    if is_dataclass(kind):
        return _build(kind, value, name, f"{key}.")
    if get_origin(kind) is list and isinstance(value, list):
        (inner,) = get_args(kind)
        return [_convert(inner, one, name, key) for one in value]
    if get_origin(kind) is dict and isinstance(value, dict):
        inner = get_args(kind)[1]
        return {k: _convert(inner, one, name, f"{key}.{k}") for k, one in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = isinstance(kind, type) and not isinstance(kind, types.GenericAlias)
    if plain and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    wanted = getattr(kind, "__name__", str(kind))
    names = {"str": "text", "float": "a number", "int": "a whole number", "list": "a list",
             "dict": "a table"}
    raise InputError(f"{name}: {key} must be {names.get(wanted, wanted)}, not {value!r}.")
