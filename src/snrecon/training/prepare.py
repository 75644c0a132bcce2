"""Raw scans to a folder of training data: one ``.npz`` a volume and an index.

Each volume is an ordinary scan file that ``load`` reads too: ``kspace`` ``(slice, coil, ky, kx)``
with ``layout="stack"``, ``maps``, ``mask`` and ``noise_covariance``, and ``slices``, the places of
the slices in the source. ``index.json`` says for every volume where it comes from, how it was made,
and whether it is for training or validation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.io import load
from snrecon.io.limits import reason
from snrecon.io.staging import made_folder, staged
from snrecon.training.volume import Prepared, prepare_scan

INDEX = "index.json"
FORMAT = "snrecon training data 1"
ENDINGS = (".h5", ".hdf5", ".mrd", ".npz", ".npy", ".cfl")
Progress = Callable[[int, int | None, str], None]


@dataclass(frozen=True)
class Settings:
    """How scans are made ready."""

    coils: int | None = None
    """Virtual coils kept; None keeps all."""
    keep_noise: bool = False
    """Store coils as they were, with their noise covariance, instead of whitened."""
    min_signal: float = 0.02
    """Smallest share of bright voxels for a slice to be kept."""
    key: str | None = None
    """Array of the files that holds the k-space."""
    noise_covariance: str | None = None
    """File, or ``identity``."""


@dataclass(frozen=True)
class Report:
    """What was done."""

    volumes: int
    done_before: int
    slices: int
    skipped: int
    training: int
    validation: int
    index: Path

    def __str__(self) -> str:
        return (f"{self.volumes} volumes ({self.done_before} were there already), {self.slices} "
                f"slices, {self.skipped} with too little signal left out\n"
                f"training {self.training} volumes, validation {self.validation}\n"
                f"wrote {self.index}")


def prepare(
    sources: Iterable[str | Path],
    folder: str | Path,
    settings: Settings | None = None,
    *,
    validation: float = 0.1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Make training data of scans; see the module for the format.

    What is finished stays finished: a volume is made again only if its source (size or time of
    change), the settings or the file of the noise covariance are different, or its file is gone.
    Other volumes that the folder holds already stay, so data can be added. Volumes of one subject
    (``patient_id`` of the file, else the volume's name) are all for training or all for validation,
    and stay there when data are added, unless ``validation`` or ``seed`` is another.

    Args:
        sources: Scan files of any format that ``load`` reads, and folders of them.
        folder: Where the data go; made if needed.
        settings: How.
        validation: Share of the subjects for validation, at least one if it is above 0 and there
            are two.
        seed: Of the division.
        progress: Called as ``progress(done, total, message)``.

    Raises:
        InputError: if a scan cannot be used or is there already under another name, the folder
            cannot be written, or a volume would replace one of the scans or another file that is no
            volume of the folder. A folder that was made for the data does not stay empty.
    """
    settings = settings or Settings()
    if settings.keep_noise and settings.coils is not None:
        raise InputError("coils are compressed after whitening: leave out either --coils or "
                         "--keep-noise.")
    if not 0 <= validation < 1:
        raise InputError(f"the validation share must lie from 0 to below 1, not {validation:g}.")
    files = _files(sources)
    with made_folder(folder) as made:
        return _prepared(files, made, settings, validation, seed, progress)


def _prepared(
    files: list[Path], folder: Path, settings: Settings, validation: float, seed: int,
    progress: Progress | None,
) -> Report:
    old = _read_index(folder) if (folder / INDEX).exists() else {"volumes": []}
    table = {entry["file"]: entry for entry in old["volumes"]
             if (folder / entry["file"]).is_file()}
    same = (old.get("seed"), old.get("validation")) == (seed, validation)
    table = {name: {**entry, "settled": same and entry.get("settled", False)}
             for name, entry in table.items()}
    names = _names(files, {entry["source"]: name for name, entry in table.items()})
    _check_replaced(names, folder, table)

    def write() -> None:
        _write_index(folder, list(table.values()), seed, validation)

    before = 0
    for done, (name, path) in enumerate(names.items()):
        if progress is not None:
            progress(done, len(names), path.name)
        mark = _mark(path, settings)
        if name in table and table[name]["mark"] == mark:
            before += 1
        else:
            _check_new(path, folder, [entry for entry in table.values() if entry["file"] != name])
            before_it = table.get(name, {})
            table[name] = {**_volume(path, folder / name, settings), "mark": mark}
            if before_it.get("subject") == table[name]["subject"]:
                table[name] |= {"split": before_it["split"], "settled": before_it["settled"]}
            table = _divided(table, validation, seed)
            write()
    # Only now: an interrupted run goes on to the division of one that was not.
    table = {name: {**entry, "settled": True}
             for name, entry in _divided(table, validation, seed).items()}
    write()
    entries = list(table.values())
    held = sum(entry["split"] == "validation" for entry in entries)
    return Report(len(entries), before, sum(entry["slices"] for entry in entries),
                  sum(entry["skipped"] for entry in entries), len(entries) - held, held,
                  folder / INDEX)


def _check_replaced(
    names: dict[str, Path], folder: Path, table: dict[str, dict[str, Any]]
) -> None:
    """Raw scans cannot be measured again: only what was prepared before may be replaced."""
    given = {path.resolve() for path in names.values()}
    for name in names:
        if (folder / name).resolve() in given:
            raise InputError(f"{folder / name} is one of the scans to prepare, and its volume "
                             "would replace it; choose another folder for the volumes.")
        if name not in table and (folder / name).exists():
            raise InputError(f"{folder / name} is there already, and is not a volume that "
                             f"{folder / INDEX} knows; move it away or choose another folder.")


def _check_new(path: Path, folder: Path, others: list[dict[str, Any]]) -> None:
    """One scan twice could be in training and in validation."""
    digest = _digest(_data_file(path))
    for entry in others:
        if entry.get("source_sha256") == digest:
            raise InputError(
                f"{path} is the same scan as {entry['source']}, of which {folder / entry['file']} "
                "was made: leave one of them out, or delete that volume if the scan was moved.")


def read_index(folder: str | Path) -> list[dict[str, Any]]:
    """The volumes of a folder of training data.

    Raises:
        InputError: if the index is missing or damaged.
    """
    return list(_read_index(Path(folder))["volumes"])


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError("it is of another version")
        for entry in found["volumes"]:
            for key in ("file", "source", "subject", "split", "mark", "slices", "skipped"):
                entry[key]
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file; make it with snrecon prepare.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: this is not an index of training data ({reason(error)})."
        ) from error
    return found


def _volume(path: Path, out: Path, settings: Settings) -> dict[str, Any]:
    """Prepare one scan, write it, and say what it is."""
    scan = load(path, key=settings.key, noise_covariance=settings.noise_covariance)
    made = prepare_scan(scan, settings.coils, settings.min_signal)
    origin = _digest(_data_file(path))  # before the volume is there, which the index must soon know
    with staged() as staging:
        beside = staging.path(out)
        with beside.open("wb") as stream:
            np.savez(stream, **_arrays(made, scan, settings))
        size, digest = beside.stat().st_size, _digest(beside)
    return {
        "file": out.name,
        "source": str(path),
        "source_sha256": origin,
        "subject": str(scan.attributes.get("patient_id") or out.stem),
        "sha256": digest,
        "bytes": size,
        "shape": list(made.kspace.shape),
        "slices": len(made.kept),
        "skipped": made.skipped,
        "full": made.full,
        "reference": "matched" if made.full else "none: undersampled",
        "units": "noise SD of a complex sample" if not settings.keep_noise else "as stored",
        "noise": made.noise.source,
        "maps": made.maps_source,
        "settings": asdict(settings),
    }


def _arrays(made: Prepared, scan: Scan, settings: Settings) -> dict[str, Any]:
    kspace, maps, noise = made.kspace, made.maps, made.noise
    covariance = np.eye(kspace.shape[1], dtype=np.complex64)
    if settings.keep_noise:
        kspace = torch.stack([noise.unwhiten(one) for one in kspace])
        maps = torch.stack([noise.unwhiten(one) for one in maps])
        covariance = noise.covariance.numpy()
    same = bool((made.mask == made.mask[:1]).all())
    arrays: dict[str, Any] = {
        "kspace": kspace.numpy(), "maps": maps.numpy(),
        "mask": (made.mask[0] if same else made.mask).numpy(),
        "noise_covariance": covariance, "layout": "stack",
        "slices": np.array(made.kept),
    }
    if noise.spectrum is not None:
        arrays["noise_spectrum"] = noise.spectrum.numpy()
    return arrays


def _divided(
    table: dict[str, dict[str, Any]], share: float, seed: int
) -> dict[str, dict[str, Any]]:
    """Entries with their ``split``, sorted by name. Subjects of settled entries stay where they
    are; the place of the others does not depend on the order of files."""
    subjects = {entry["subject"] for entry in table.values()}
    settled = {entry["subject"]: entry["split"] for entry in table.values()
               if entry.get("settled")}
    count = round(share * len(subjects))
    if share > 0 and len(subjects) > 1:
        count = min(max(count, 1), len(subjects) - 1)
    held = {subject for subject, split in settled.items() if split == "validation"}
    drawn = sorted(subjects - set(settled),
                   key=lambda s: hashlib.sha256(f"{seed}:{s}".encode()).hexdigest())
    held |= set(drawn[:max(count - len(held), 0)])
    return {name: {**table[name],
                   "split": "validation" if table[name]["subject"] in held else "train"}
            for name in sorted(table)}


def _write_index(
    folder: Path, entries: list[dict[str, Any]], seed: int, validation: float
) -> None:
    text = json.dumps({"format": FORMAT, "seed": seed, "validation": validation,
                       "volumes": entries}, indent=1)
    with staged() as staging:
        staging.path(folder / INDEX).write_text(text + "\n", encoding="utf-8")


def _files(sources: Iterable[str | Path]) -> list[Path]:
    found: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = sorted(p for p in source.iterdir() if p.suffix in ENDINGS and p.is_file()
                            and not p.name.startswith("."))
            if not inside:
                raise InputError(f"{source}: this folder holds no scans ({', '.join(ENDINGS)}).")
            found += inside
        elif _data_file(source).is_file():
            found.append(source)
        else:
            raise InputError(f"{source}: there is no such file or folder.")
    if not found:
        raise InputError("name at least one scan or folder of scans to prepare.")
    return list(dict.fromkeys(path.absolute() for path in found))


def _names(paths: list[Path], known: dict[str, str]) -> dict[str, Path]:
    """File names of the prepared volumes: of ``known`` sources those that they have, of others the
    scans' own, with their folder's where that one is not free."""
    names = {known[str(path)]: path for path in paths if str(path) in known}
    used = {**{name: source for source, name in known.items()},
            **{name: str(path) for name, path in names.items()}}
    stems = [path.stem for path in paths]
    for path in paths:
        if str(path) in known:
            continue
        name = f"{path.stem}.npz"
        if stems.count(path.stem) > 1 or name in used:
            name = f"{path.parent.name}_{path.stem}.npz"
        if name in used:
            raise InputError(f"{path} and {used[name]} would get the same name; rename one of them "
                             "or choose another folder.")
        names[name], used[name] = path, str(path)
    return names


def _mark(path: Path, settings: Settings) -> str:
    """Changes when the source, the settings or the file of the covariance do."""
    about = _data_file(path).stat()
    parts = [str(path), about.st_size, about.st_mtime_ns, asdict(settings)]
    if settings.noise_covariance is not None:
        covariance = _data_file(Path(settings.noise_covariance))
        parts += [_digest(covariance)] if covariance.is_file() else []
    text = json.dumps(parts)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _data_file(path: Path) -> Path:
    return path if path.exists() else Path(f"{path}.cfl")


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
