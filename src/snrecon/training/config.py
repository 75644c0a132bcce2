"""The typed training configuration."""

from __future__ import annotations

from dataclasses import dataclass, field

SCHEMES = ("supervised", "ssdu", "noise2recon", "vortex", "noise_predictor",
           "score_matching", "autoencoder")
PRIORS = {"score_matching": "ncsnpp", "autoencoder": "autoencoder"}
"""Schemes that learn a prior of images from images alone, with the network of each."""


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
    """Range of the fully sampled share of the lines, 0.4 over the acceleration at most; the block
    of 2D kinds has sides of twice the share."""
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
    """Wall-clock limit; the learning rate reaches its end at this time, unless ``max_steps`` is
    set. 0: no limit."""
    max_steps: int = 0
    """Limit in steps; above 0, the learning rate reaches its end there, and ``max_minutes`` only
    stops the run. 0: no limit."""
    batch: int = 4
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    warmup: int = 200
    """Steps of linear warm-up."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    ema: float = 0.998
    """Decay per step of the averaged weights, which are what is exported."""
    curvature: float = 0.0
    """Weight of the network's curvature over its own noise, by which a noise map of first order is
    wrong (``snrecon.training.curvature``). Above 0, a step takes about three times as long."""
    curvature_limit: float = 0.0
    """Above 0: a curvature ``c`` counts as ``c / (1 + c / limit)``, so that measurements with so
    much noise that removing it has to be nonlinear are let off."""
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
class PriorConfig:
    """Schemes ``score_matching`` and ``autoencoder``: images without measurements."""

    sigma: list[float] = field(default_factory=lambda: [0.01, 50.0])
    """``score_matching``: noise levels, of images in about [0, 1]. Published for 320x320: 0.01 to
    378; about the largest distance between two images is enough."""
    even: float = 0.3
    """Share of the noise levels that are drawn log-uniformly, as published; the others are drawn
    where there is most to learn: log-normally, around ``centre``."""
    centre: float = 0.15
    """Median of those noise levels."""
    spread: float = 1.2
    """Standard deviation of their logarithm."""
    signed: float = 0.5
    """Share of the images that are multiplied by the cosine of a random smooth phase: what real and
    imaginary parts of complex images look like. The others are magnitudes."""
    divergence: float = 1.0
    """``autoencoder``: weight of the divergence of the code from its prior."""


@dataclass(frozen=True)
class OutputConfig:
    """Where results go."""

    folder: str = ""
    """Empty: ``runs/`` and the name."""
    name: str = ""
    """File name of the weights, without ending. Empty: that of the network."""


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
    prior: PriorConfig = field(default_factory=PriorConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
