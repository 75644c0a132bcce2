"""Printing and keeping the tables of the benchmarks."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def machine(device: str = "cpu") -> str:
    """Processor, threads and versions, in a line; first of all the device if it is another."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    first = "" if device == "cpu" else f"{device}; "
    return (
        f"{first}{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )


def publish(
    name: str, title: str, body: str, keep: bool = True, script: str | None = None,
    device: str = "cpu",
) -> None:
    """Print a result and, for a full run, keep it as ``benchmarks/results/NAME.md``; ``script`` is
    what made it, if that has another name; ``device`` where."""
    arguments = " ".join(sys.argv[1:])
    command = f"python -m benchmarks.{script or name} {arguments}".strip()
    text = f"# {title}\n\n`{command}` on {machine(device)}\n\n{body}\n"
    print(text)
    if keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")


def insert(path: Path, name: str, body: str) -> None:
    """Put ``body`` between the markers ``name`` of a document, appended if it has none."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    section = f"{begin}\n{body}\n{end}"
    text = path.read_text(encoding="utf-8")
    if begin in text:
        text = re.sub(f"{begin}.*?{end}", lambda _: section, text, flags=re.DOTALL)
    else:
        text = text.rstrip() + "\n\n" + section + "\n"
    path.write_text(text, encoding="utf-8")
