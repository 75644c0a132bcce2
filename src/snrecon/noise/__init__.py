"""Noise maps of reconstructions, and what else Jacobian products can tell about noise."""

from snrecon.noise.acquire import Acquisition, acquire
from snrecon.noise.analytic import pruessmann_g
from snrecon.noise.dither import dither
from snrecon.noise.estimate import ESTIMATORS, noise_map
from snrecon.noise.functionals import RegionNoise, attribution, local_response, psf, roi
from snrecon.noise.intervals import sigma_interval
from snrecon.noise.linearity import Linearity, linearity_check
from snrecon.noise.merge import merge
from snrecon.noise.repetitions import RepetitionCheck, repetition_check
from snrecon.noise.rician import rician_mean_sd, rician_sigma

__all__ = [
    "ESTIMATORS",
    "Acquisition",
    "Linearity",
    "RegionNoise",
    "RepetitionCheck",
    "acquire",
    "attribution",
    "dither",
    "linearity_check",
    "local_response",
    "merge",
    "noise_map",
    "pruessmann_g",
    "psf",
    "repetition_check",
    "rician_mean_sd",
    "rician_sigma",
    "roi",
    "sigma_interval",
]
