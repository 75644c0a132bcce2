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
    out = checked(args.out or default(args.scan, method, args.slice, kind), [args.scan])
    if getattr(args, "state", None) is not None:
        writable(args.state, [args.scan, out], "--state")
    return out


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
    for other in inputs:
        if path.exists() and other.exists() and path.samefile(other):
            raise InputError(f"{option} {path} would overwrite an input; choose another name.")
    return path


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
