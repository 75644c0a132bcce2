"""Training networks: configuration, simulated measurements, schemes."""

from snrecon.training.config import Config
from snrecon.training.config_file import load_config
from snrecon.training.run import train

__all__ = ["Config", "load_config", "train"]
