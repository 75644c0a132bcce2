"""The volumes of a folder."""

from __future__ import annotations

from pathlib import Path

from snrecon.errors import InputError

SCANS = (".h5", ".hdf5", ".mrd", ".npz", ".npy", ".cfl")
IMAGES = (".h5", ".hdf5", ".npz")


def scan_files(path: Path, endings: tuple[str, ...] = SCANS) -> list[Path]:
    """A file itself, or those of a folder that end like scans, sorted by name.

    Raises:
        InputError: if there are none.
    """
    if not path.is_dir():
        # A BART scan is named with or without its ending.
        if not path.exists() and not Path(f"{path}.cfl").exists():
            raise InputError(f"{path}: there is no such file or folder.")
        return [path]
    found = sorted(p for p in path.iterdir()
                   if p.suffix in endings and p.is_file() and not p.name.startswith("."))
    if not found:
        raise InputError(f"{path}: this folder has no files that end in {', '.join(endings)}.")
    return found


def paired(images: Path, references: Path) -> list[tuple[Path, Path]]:
    """Images and references that belong together: two files, or files of one name in two folders.

    Raises:
        InputError: if an image has no reference.
    """
    first, second = scan_files(images, IMAGES), scan_files(references, IMAGES)
    if not images.is_dir() and not references.is_dir():
        return [(images, references)]
    by_name = {path.stem: path for path in second}
    lonely = [path.name for path in first if path.stem not in by_name]
    if lonely:
        more = f" and {len(lonely) - 1} more" if len(lonely) > 1 else ""
        raise InputError(
            f"{references}: there is no reference named like {lonely[0]}{more} (endings do not "
            "count)."
        )
    return [(path, by_name[path.stem]) for path in first]
