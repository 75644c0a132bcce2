"""Rows of scores as a file that grows and as a table for the terminal."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TextIO

from snrecon.errors import InputError
from snrecon.io.limits import reason
from snrecon.report.evaluate import Row

SCORES = ("nmse", "psnr", "ssim")
COLUMNS = tuple(field.name for field in fields(Row))


def collect(rows: Iterable[Row], out: str | Path | None = None) -> list[Row]:
    """All rows; each is also written to ``out`` as soon as it is there.

    The file grows under another name and gets its own when all rows are there, with the lines
    ``(mean)``, ``(sd)`` and ``(count)`` at its end. After an interruption it gets it too, with the
    rows that were finished and without those lines; after a failure nothing is left.

    Raises:
        InputError: if the file cannot be written.
    """
    if out is None:
        return list(rows)
    out = Path(out)
    beside = out.with_name(f".{out.name}.part")
    finished: list[Row] = []
    try:
        with beside.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            try:
                for row in rows:
                    writer.writerow(_plain(asdict(row)))
                    stream.flush()
                    finished.append(row)
            except KeyboardInterrupt:
                if finished:
                    stream.close()
                    beside.replace(out)
                raise
            for name, values in summary(finished).items():
                writer.writerow(_plain({"volume": f"({name})", **values}))
        beside.replace(out)
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{out}: cannot be written ({reason(error)}).") from error
    finally:
        beside.unlink(missing_ok=True)
    return finished


def summary(rows: list[Row]) -> dict[str, dict[str, float]]:
    """``mean``, ``sd`` (of the volumes, n - 1) and ``count`` of every score."""
    columns = {name: [float(getattr(row, name)) for row in rows] for name in SCORES}
    return {
        "mean": {name: _mean(values) for name, values in columns.items()},
        "sd": {name: statistics.stdev(values) if _spread(values) else math.nan
               for name, values in columns.items()},
        "count": {name: float(len(values)) for name, values in columns.items()},
    }


def show(rows: list[Row], stream: TextIO) -> None:
    """Print the table, with what the scores are of above it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    for line in _heading(rows):
        print(line, file=stream)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("volume", overflow="fold")
    for title in ("slices", "R", "NMSE", "PSNR, dB", "SSIM"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        r = "" if math.isnan(row.acceleration) else f"{row.acceleration:.2f}"
        table.add_row(row.volume.replace("[", r"\["), str(row.slices), r,
                      *(_text(name, getattr(row, name)) for name in SCORES))
    table.add_section()
    for name, values in summary(rows).items():
        if name == "count":
            continue
        table.add_row(f"{name} of {len(rows)}", "", "", *(_text(s, values[s]) for s in SCORES))
    terminal = stream.isatty()
    Console(file=stream, width=None if terminal else 100, highlight=False).print(table)


def _heading(rows: list[Row]) -> list[str]:
    names = {
        "rss": "root sum of squares of the fully sampled coils (rss)",
        "matched": "fully sampled coils combined with the method's coil maps (matched)",
        "esc": "fastMRI's emulated single coil (esc)",
    }
    kinds = sorted({row.reference for row in rows})
    regions = sorted({row.region for row in rows})
    methods = sorted({row.method for row in rows})
    masks = sorted({row.mask for row in rows if row.mask})
    lines = [f"method     {', '.join(methods)}",
             f"reference  {'; '.join(names.get(kind, kind) for kind in kinds)}",
             f"region     {', '.join(regions)}; magnitudes, nothing rescaled"]
    if masks:
        lines.insert(1, f"mask       {', '.join(masks)}")
    factors = [row.scale for row in rows if math.isfinite(row.scale)]
    if factors and not 0.8 < statistics.median(factors) < 1.25:
        lines.append(f"note       images would fit best when multiplied by "
                     f"{statistics.median(factors):.4g}: are both in the same units?")
    return lines


def _text(name: str, value: float) -> str:
    if not math.isfinite(value):
        return "" if math.isnan(value) else "inf"
    return f"{value:.2f}" if name == "psnr" else f"{value:.4f}" if value < 100 else f"{value:.3g}"


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: ("" if math.isnan(value) else f"{value:.9g}") if isinstance(value, float)
            else value for key, value in values.items()}


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def _spread(values: list[float]) -> bool:
    return len(values) > 1 and all(map(math.isfinite, values))
