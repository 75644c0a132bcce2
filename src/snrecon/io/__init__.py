"""Files in and out: scans of several formats, results with their noise maps."""

from snrecon.io.cfl import read_cfl, write_cfl
from snrecon.io.load import detect, load

__all__ = ["detect", "load", "read_cfl", "write_cfl"]
