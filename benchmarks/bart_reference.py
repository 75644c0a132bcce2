"""Small reference arrays made by BART, for ``tests/test_bart_reference.py``.

BART (Uecker et al., https://mrirecon.github.io/bart) is a second witness written by others. This
script ran once, with the version and the commands that every file states in ``commands``; the tests
compare with the arrays it left and need no BART.

    python -m benchmarks.bart_reference [--out tests/references] [--replicas 500]

Axes are those of this package, ``(coil, ky, kx)``; BART's are the reverse.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from snrecon.io.cfl import read_cfl, write_cfl

FOLDER = Path(__file__).parents[1] / "tests" / "references"
SIZE, COILS, SAMPLES = 32, 4, 1024
LAMBDA_SENSE, LAMBDA_TV, LAMBDA_WAVELET = 2.0, 0.5, 0.5
CALIBRATION, MAPS_SIZE = 20, 48


class Bart:
    """Runs BART in a folder of its own and notes the commands."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        version = subprocess.run(["bart", "version"], capture_output=True, text=True, check=True)
        self.commands = [f"bart version: {version.stdout.strip()}"]

    def __call__(self, command: str, note: bool = True) -> None:
        subprocess.run(
            ["bart", *shlex.split(command)], cwd=self.folder, check=True, capture_output=True
        )
        if note:
            self.commands.append(f"bart {command}")

    def put(self, name: str, array: np.ndarray, comment: str = "") -> None:
        """Write an array of ours, axes reversed; ``(coil, ky, kx)`` becomes ``(kx, ky, 1, coil)``.
        """
        moved = array.T if array.ndim < 3 else array.T[:, :, None, :]
        write_cfl(self.folder / name, moved)
        self.commands.append(f"# {name}: {comment}")

    def get(self, name: str) -> np.ndarray:
        """Read an array, axes reversed and those of length 1 dropped."""
        return np.ascontiguousarray(read_cfl(self.folder / name).T.squeeze())

    def save(self, path: Path, **arrays: np.ndarray) -> None:
        """Write arrays with the commands so far."""
        np.savez_compressed(path, commands=np.array(self.commands), **arrays)  # type: ignore[arg-type]


def lines_mask() -> np.ndarray:
    """Every third line and eight in the centre, ``(ky, kx)``."""
    line = np.arange(SIZE)
    lines = (line % 3 == 1) | (np.abs(line - SIZE // 2 + 0.5) < 4)
    return np.repeat(lines[:, None], SIZE, axis=1)


def measurement(bart: Bart) -> np.ndarray:
    """Raw k-space with correlated noise, maps and noise scan, all named in the folder; the mask."""
    bart(f"phantom -x {SIZE} object")
    bart(f"phantom -x {SIZE} -S {COILS} unscaled")
    maps = bart.get("unscaled")
    bart.put("raw_maps", maps / np.sqrt((np.abs(maps) ** 2).sum(0).max()), "unscaled, largest sum "
             "of squares 1")
    rng = np.random.default_rng(4)
    mixing = rng.normal(size=(COILS, COILS)) + 1j * rng.normal(size=(COILS, COILS))
    mixing = 0.04 * (np.diag([1, 1.5, 0.8, 1.2]) + 0.3 * mixing)
    bart(f"zeros 4 {SAMPLES} 1 1 {COILS} nothing")
    bart("noise -s 3 -n 1 nothing white_scan")
    bart.put("noise_scan", (mixing @ bart.get("white_scan"))[:, None, :], "correlated noise")
    mask = lines_mask()
    bart("fmac object raw_maps coil_images")
    bart("fft -u 3 coil_images full")
    bart(f"zeros 4 {SIZE} {SIZE} 1 {COILS} empty")
    bart("noise -s 5 -n 1 empty white")
    noise = np.einsum("ab,byx->ayx", mixing, bart.get("white"))
    bart.put("raw", (bart.get("full") + noise) * mask, "full + correlated noise, undersampled")
    return mask


def sense(out: Path, replicas: int) -> None:
    """Whitening, regularised SENSE, total variation, wavelets, and the SD over replicas."""
    with tempfile.TemporaryDirectory() as folder:
        bart = Bart(folder)
        mask = measurement(bart)
        bart("whiten raw noise_scan kspace matrix covariance")
        bart("whiten -o matrix raw_maps noise_scan maps")
        bart(f"pics -w1 -l2 -r {LAMBDA_SENSE} -i 300 kspace maps sense")
        # TV: BART's differences are backward, so it is the mirror image of forward differences.
        # ADMM with exact inner solves: its FISTA stops short of the minimiser.
        bart(f"pics -w1 -R T:3:0:{LAMBDA_TV} -i 4000 -C 60 -u 0.5 kspace maps tv")
        bart(f"pics -w1 -R W:3:0:{LAMBDA_WAVELET} -n --wavelet haar -m -i 4000 -C 60 -u 0.5 "
             "kspace maps wavelet")
        arrays = {
            "kspace": bart.get("raw"), "maps": bart.get("raw_maps"), "mask": mask,
            "noise": bart.get("noise_scan"), "covariance": bart.get("covariance").T,
            "sense": bart.get("sense"), "tv": bart.get("tv"), "wavelet": bart.get("wavelet"),
            "lambdas": np.array([LAMBDA_SENSE, LAMBDA_TV, LAMBDA_WAVELET]),
        }
        # covariance: BART's axes 3 and 4 are row and column; reversing them transposed it.
        white = bart.get("kspace")
        bart.commands.append(f"# replicas 1 to {replicas}: noise, added on the mask, reconstructed")
        images = []
        for index in range(replicas):
            bart(f"noise -s {1000 + index} -n 1 empty draw", note=index == 0)
            write_cfl(
                bart.folder / "again", ((white + bart.get("draw") * mask).T)[:, :, None, :]
            )
            bart(f"pics -w1 -l2 -r {LAMBDA_SENSE} -i 300 again maps image", note=index == 0)
            images.append(bart.get("image"))
        write_cfl(bart.folder / "stack", np.stack(images, -1).transpose(1, 0, 2))
        bart("std 4 stack deviation")
        bart.save(
            out / "bart_sense.npz", **arrays,
            sigma_complex=bart.get("deviation").real.astype(np.float32),
            replicas=np.array(replicas),
        )


def maps(out: Path) -> None:
    """ESPIRiT maps of a phantom with analytic k-space."""
    with tempfile.TemporaryDirectory() as folder:
        bart = Bart(folder)
        bart(f"phantom -x {MAPS_SIZE} -s {COILS} -k full")
        bart(f"resize -c 0 {CALIBRATION} 1 {CALIBRATION} full calibration")
        bart(f"resize -c 0 {MAPS_SIZE} 1 {MAPS_SIZE} calibration padded")
        # BART's -t is compared with squared singular values.
        bart(f"ecalib -t 0.0004 -c 0 -k 6 -r {CALIBRATION} -m 1 padded maps values")
        bart("fft -u -i 3 full images")
        images = bart.get("images")
        bart.save(
            out / "bart_ecalib.npz", calibration=bart.get("calibration"), maps=bart.get("maps"),
            values=bart.get("values").real.astype(np.float32),
            magnitude=np.sqrt((np.abs(images) ** 2).sum(0)).astype(np.float32),
        )


def fourier(out: Path) -> None:
    """The centred unitary transform, even and odd sizes."""
    with tempfile.TemporaryDirectory() as folder:
        bart = Bart(folder)
        arrays = {}
        for name, shape in {"even": (24, 16), "odd": (15, 21)}.items():
            bart(f"zeros 2 {shape[1]} {shape[0]} zeros_{name}")
            bart(f"noise -s 9 -n 1 zeros_{name} image_{name}")
            bart(f"fft -u 3 image_{name} kspace_{name}")
            arrays |= {k: bart.get(k) for k in (f"image_{name}", f"kspace_{name}")}
        bart.save(out / "bart_fft.npz", **arrays)


def main() -> None:
    """Make every file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--replicas", type=int, default=500)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    fourier(args.out)
    maps(args.out)
    sense(args.out, args.replicas)
    for path in sorted(args.out.glob("bart_*.npz")):
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
