"""Options that several commands share, and the scan they describe."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from snrecon.errors import InputError

if TYPE_CHECKING:
    import torch

    from snrecon.data import Scan
    from snrecon.recon.base import Reconstructor

METHODS = (
    "zero_filled, partial_fourier, sense, grappa, tv, wavelet, unet, varnet, e2e_varnet, modl, "
    "score, langevin, latent or convdecoder; a variant or weights after a colon, e.g. "
    "partial_fourier:pocs, varnet:brain, varnet:path.safetensors, or published weights, "
    "unet:path.pt"
)


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is one sentence instead of a page of usage."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        message = message[:1].lower() + message[1:].rstrip(".")
        raise InputError(f"{self.prog}: {message}; see '{self.prog} --help'.")


def add_command(commands: Any, name: str, help_: str, run: Any, **options: Any) -> Parser:
    """A subcommand with ``--debug``; ``run(args)`` does it, ``args.parser`` complains for it."""
    parser: Parser = commands.add_parser(name, help=help_, description=help_, **options)
    parser.set_defaults(run=run, parser=parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks and all warnings")
    return parser


def add_scan(parser: Parser, help_: str = ".npz, .npy, .h5 or .cfl file") -> None:
    """The scan and everything that says how to read it."""
    parser.add_argument("scan", metavar="SCAN", type=Path, help=help_)
    group = parser.add_argument_group("reading the scan")
    group.add_argument("--key", metavar="NAME", help="array of the file that holds the k-space")
    group.add_argument("--slice", metavar="N", type=int, help="one slice of a stack, from 0")
    group.add_argument("--mask", metavar="KIND", help="undersample with this kind of mask")
    group.add_argument(
        "--acceleration", metavar="R", type=positive, help="nominal acceleration of --mask"
    )
    group.add_argument(
        "--calibration", metavar="N", type=count, help="fully sampled central lines of --mask"
    )
    group.add_argument("--mask-seed", metavar="S", type=count, default=0, help="seed of --mask")
    group.add_argument("--maps", metavar="FILE", type=Path, help="coil maps, used as they are")
    group.add_argument(
        "--noise-covariance",
        metavar="FILE",
        help="(coil, coil) noise covariance, or 'identity' for whitened data",
    )


def add_method(parser: Parser, required: bool = True) -> None:
    """The reconstruction."""
    parser.add_argument("--method", metavar="NAME", required=required, help=METHODS)
    add_lambda(
        parser, "regularisation parameter; 'sure' takes that of the least estimated error"
    )
    parser.add_argument(
        "--set", metavar="KEY=VALUE", dest="settings", type=setting, action="append", default=[],
        help="a further option of the method, e.g. algorithm=hybrid; repeat it for more",
    )  # fmt: skip


def add_device(parser: Parser) -> None:
    """Where it is computed."""
    parser.add_argument(
        "--device", metavar="NAME", default="cpu",
        help="where to compute: cpu (default), cuda, cuda:1, ..., or auto: a GPU if there is one",
    )  # fmt: skip


def add_regions(parser: Parser, wanted: str) -> None:
    """``--region NAME=FILE.npy``, repeatable."""
    parser.add_argument(
        "--region", metavar="NAME=FILE.npy", action="append", default=[],
        help=f"boolean array of the image's shape, {wanted} (repeatable)",
    )  # fmt: skip


def add_lambda(parser: Parser, help_: str) -> None:
    """The weight of a method's penalty."""
    parser.add_argument("--lambda", metavar="X", dest="lamda", type=penalty, help=help_)


def load_scan(args: argparse.Namespace) -> Scan:
    """The scan that the options describe.

    Raises:
        InputError: if it cannot be read, or options contradict each other.
    """
    from snrecon.io import load

    device = chosen_device(args)  # complains before anything is read
    scan = load(
        args.scan,
        key=args.key,
        slice=args.slice,
        undersample=undersampling(args),
        maps=args.maps,
        noise_covariance=args.noise_covariance,
    )
    return scan if device.type == "cpu" else scan.to(device)


def chosen_device(args: argparse.Namespace) -> torch.device:
    """The device that the options name; the CPU for commands without the option.

    Raises:
        InputError: if there is no such device here.
    """
    import torch

    name = getattr(args, "device", "cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(
            f"--device {name} is no name of a device; give cpu, cuda, cuda:1 or auto."
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name} is not supported; give cpu, cuda, cuda:1 or auto.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count() or "no"
        raise InputError(f"--device {name} is not there: torch finds {found} usable GPU"
                         f"{'s' if found != 1 else ''}.")
    return device


def load_regions(
    args: argparse.Namespace, device: torch.device | str = "cpu"
) -> dict[str, torch.Tensor]:
    """The regions that the options name, boolean.

    Raises:
        InputError: if one is no boolean array, or a name comes twice.
    """
    import torch

    from snrecon.io.npy import read_npy

    regions: dict[str, torch.Tensor] = {}
    for text in args.region:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise InputError(f"--region {text}: give a name and a file, NAME=FILE.npy.")
        if name in regions:
            raise InputError(f"--region {name} is given twice.")
        array = read_npy(path)
        if array.dtype.kind not in "biu":
            raise InputError(f"--region {path} must hold booleans, not {array.dtype}.")
        regions[name] = torch.from_numpy(array.astype(bool)).to(device)
    return regions


def undersampling(args: argparse.Namespace) -> dict[str, Any] | None:
    if args.mask is None:
        if args.acceleration is not None or args.calibration is not None:
            raise InputError(
                "--acceleration and --calibration belong to --mask KIND, which is missing."
            )
        return None
    if args.acceleration is None:
        raise InputError(f"--mask {args.mask} needs --acceleration R.")
    return {
        "kind": args.mask,
        "acceleration": args.acceleration,
        "calibration": args.calibration,
        "seed": args.mask_seed,
    }


def load_method(args: argparse.Namespace) -> Reconstructor:
    """The reconstruction that the options describe."""
    from snrecon.recon import load

    settings: dict[str, bool | float | str] = {}
    for key, value in args.settings:
        if key in settings:
            raise InputError(f"--set {key} is given twice.")
        settings[key] = value
    return load(args.method, lamda=args.lamda, **settings)


def load_command(args: argparse.Namespace) -> Reconstructor:
    """The external reconstruction that the options describe."""
    from snrecon.recon.command import Command

    return Command(args.command)


def setting(text: str) -> tuple[str, bool | float | str]:
    """``key=value``: a whole number, a number, true or false, or text."""
    key, sign, value = text.partition("=")
    if key in ("lamda", "lambda"):
        raise argparse.ArgumentTypeError("lambda has an option of its own, --lambda")
    if not sign or not key.isidentifier() or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE")
    if value.lower() in ("true", "false"):
        return key, value.lower() == "true"
    for kind in (int, float):
        try:
            return key, kind(value)
        except ValueError:
            continue
    return key, value


def number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def positive(text: str) -> float:
    """A number above 0."""
    if (value := number(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def non_negative(text: str) -> float:
    """A number of at least 0."""
    if (value := number(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def penalty(text: str) -> float | str:
    """A number of at least 0, or "sure"."""
    return text if text == "sure" else non_negative(text)


def count(text: str) -> int:
    """A whole number of at least 0."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return value
