"""Where results go: checked before anything long is computed."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable
from glob import escape
from importlib.util import find_spec
from pathlib import Path

from snrecon.errors import InputError, MissingExtraError


def add_out(parser: argparse.ArgumentParser) -> None:
    """``--out FILE``, which :func:`default` replaces."""
    parser.add_argument(
        "--out", metavar="FILE", type=Path,
        help=".h5, .npz, .nii.gz or .cfl (default: named by scan and method, in this folder)",
    )  # fmt: skip


def default(scan: Path, method: str, slice_: int | None = None, kind: str = "") -> Path:
    """``SCANSTEM_METHOD[_sliceN][_KIND].h5`` in the working directory; of weights in a file their
    name alone."""
    base, _, variant = method.partition(":")
    variant = Path(variant).name.removesuffix(".safetensors")
    name = f"{base}-{variant}" if variant else base
    parts = [scan.stem, re.sub(r"[^A-Za-z0-9_.-]+", "-", name)]
    parts += [f"slice{slice_}"] if slice_ is not None else []
    return Path("_".join([*parts, kind] if kind else parts) + ".h5")


def destination(args: argparse.Namespace, kind: str = "") -> Path:
    """Where a command's result goes, ``--out`` or :func:`default`; checked, and ``--state`` too.

    Raises:
        InputError: if it, or the state, cannot be written there.
    """
    method = args.method or "command"
    read = inputs(args)
    out = checked(args.out or default(args.scan, method, args.slice, kind), read)
    if getattr(args, "state", None) is not None:
        if args.state.resolve() in [made.resolve() for made in _made(out)]:
            raise InputError(f"--state {args.state} is the name of the result, which would replace "
                             "it; choose another name for one of them.")
        writable(args.state, [*read, out], "--state")
    return out


def inputs(args: argparse.Namespace) -> list[Path]:
    """What a command reads, as far as its options name it: nothing of that is ever replaced."""
    given = [getattr(args, name, None)
             for name in ("scan", "maps", "noise_covariance", "predictor", "against")]
    given += [text.partition("=")[2] for text in getattr(args, "region", None) or []]
    given += [value for _, value in getattr(args, "settings", None) or []
              if isinstance(value, str)]
    given.append((getattr(args, "method", None) or "").partition(":")[2])
    return [path for one in given if one for path in _files(Path(one))]


def _files(path: Path) -> list[Path]:
    """A file, or the pair of BART's that its name stands for."""
    from snrecon.io.cfl import parts

    pair = parts(path) if path.name and path.suffix in ("", ".cfl", ".hdr") else ()
    return list(dict.fromkeys((path, *pair)))


def checked(path: Path, inputs: Iterable[Path] = (), option: str = "--out") -> Path:
    """``path``, if a result can be written there.

    Raises:
        InputError: if the ending is unknown, the folder is missing or not writable, the path is a
            folder, or it is one of the ``inputs``.
    """
    ending = _ending(path)
    if ending is None or len(path.name) == len(ending):
        known = ", ".join(f"NAME{e}" for e in _endings())
        raise InputError(f"{option} {path}: the name must end in a known format: {known}.")
    if ending.startswith(".nii") and find_spec("nibabel") is None:
        raise MissingExtraError("writing NIfTI files", "nifti")
    return writable(path, inputs, option)


def writable(path: Path, inputs: Iterable[Path] = (), option: str = "--out") -> Path:
    """``path``, if a file of any kind can be written there; see :func:`checked`."""
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{option} {path}: the folder {folder} does not exist; create it first.")
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder; give the name of a file in it.")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise InputError(f"{option} {path}: no permission to write there.")
    made = [one for one in _made(path) if one.exists()]
    for other in inputs:
        if other.exists() and any(one.samefile(other) for one in made):
            raise InputError(f"{option} {path} would overwrite an input; choose another name.")
    return path


def _made(path: Path) -> list[Path]:
    """The files that saving a result to ``path`` makes, or may make."""
    ending = _ending(path)
    if ending not in (".nii.gz", ".nii", ".cfl"):
        return [path]
    from snrecon.io.record import IMAGES, MAPS

    stem = path.name[: -len(ending)]
    kinds = (".cfl", ".hdr") if ending == ".cfl" else (ending,)
    names = ["", *(f"_{name}" for name in (*IMAGES, *MAPS, "covariance"))]
    return [path.with_name(f"{stem}.json"),
            *(path.with_name(f"{stem}{name}{kind}") for name in names for kind in kinds)]


def written(path: Path, since: float) -> list[Path]:
    """Files that saving to ``path`` made since that time: one, or one and more for each map."""
    ending = _ending(path)
    if ending not in (".nii.gz", ".nii", ".cfl"):
        return [path]
    stem = path.name[: -len(ending)]
    near = path.parent.glob(f"{escape(stem)}[_.]*")
    kinds = (ending, ".hdr", ".json")
    return sorted(p for p in near if p.name.endswith(kinds) and p.stat().st_mtime >= since - 1)


def _endings() -> tuple[str, ...]:
    from snrecon.io.save import ENDINGS

    return ENDINGS


def _ending(path: Path) -> str | None:
    return next((e for e in _endings() if path.name.endswith(e)), None)
