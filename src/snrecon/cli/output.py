"""Where results go: checked before anything long is computed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from snrecon.errors import InputError, MissingExtraError

SUFFIXES = (".h5", ".npz", ".nii.gz", ".cfl")


def checked(path: Path, inputs: Iterable[Path] = (), option: str = "--out") -> Path:
    """``path``, if a result can be written there.

    Raises:
        InputError: if the ending is unknown, the folder is missing or not writable, the path is a
            folder, or it is one of the ``inputs``.
    """
    suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s)), None)
    if suffix is None or len(path.name) == len(suffix):
        known = ", ".join(f"NAME{s}" for s in SUFFIXES)
        raise InputError(f"{option} {path}: the name must end in a known format: {known}.")
    if suffix == ".nii.gz" and find_spec("nibabel") is None:
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
    """Files that saving to ``path`` made since that time (one, or one for each map)."""
    stem = path.name
    for suffix in SUFFIXES:
        if stem.lower().endswith(suffix):
            stem = stem[: -len(suffix)]
    near = [p for p in path.parent.glob(f"{_literal(stem)}*") if p.stat().st_mtime >= since - 1]
    return sorted(p for p in near if p == path or p.name.startswith((f"{stem}_", f"{stem}.")))


def _literal(stem: str) -> str:
    from glob import escape

    return escape(stem)
