"""Files in and out: scans of several formats, results with their noise maps."""

from snrecon.io.cfl import read_cfl, write_cfl
from snrecon.io.load import detect, load
from snrecon.io.results import load_result
from snrecon.io.save import save, save_image

__all__ = ["detect", "load", "load_result", "read_cfl", "save", "save_image", "write_cfl"]
