"""Training networks: configuration, simulated measurements, schemes."""

from snrecon.training.config import Config, load_config
from snrecon.training.run import train

__all__ = ["Config", "load_config", "train"]
