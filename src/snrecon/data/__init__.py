"""What flows through the package: scans, noise models, noise maps."""

from snrecon.data.geometry import Geometry
from snrecon.data.noise_map import CONVENTION, NoiseMap, relative_error
from snrecon.data.noise_model import NoiseModel
from snrecon.data.scan import Scan

__all__ = ["CONVENTION", "Geometry", "NoiseMap", "NoiseModel", "Scan", "relative_error"]
