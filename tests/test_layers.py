"""The order of the layers, and that importing the package is cheap."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "snrecon"
LEVELS = {
    "errors": 0,
    "data": 1,
    "metrics": 1,
    "physics": 2,
    "io": 3,
    "networks": 3,
    "recon": 4,
    "noise": 5,
    "uncertainty": 6,
    "training": 7,
    "report": 7,
    "cli": 8,
}
FRONT = ("__init__", "__main__")
FILES = sorted(p for p in SOURCE.rglob("*.py") if p.relative_to(SOURCE).parts[0][:-3] not in FRONT)


def imported(path: Path) -> list[str]:
    """Every module of the package that a file imports, at its head or inside functions."""
    package = ["snrecon", *path.relative_to(SOURCE).parts[:-1]]
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # "from snrecon import noise" imports a layer by name.
            names += [f"{module}.{a.name}" for a in node.names] if module == "snrecon" else [module]
    return [n for n in names if n == "snrecon" or n.startswith("snrecon.")]


def violations(layer: str, names: list[str]) -> list[str]:
    """Imports of a higher layer, or of a sibling on the same level."""
    bad = []
    for name in names:
        target = name.partition("snrecon.")[2].partition(".")[0]
        if target in ("", "__version__"):
            continue
        if target not in LEVELS or (target != layer and LEVELS[target] >= LEVELS[layer]):
            bad.append(name)
    return bad


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_nothing_imports_upwards(path: Path) -> None:
    layer = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    assert layer in LEVELS, f"{layer} has no place among the layers"
    assert not violations(layer, imported(path))


def test_the_check_sees_a_violation(tmp_path: Path) -> None:
    assert violations("physics", ["snrecon.recon.base"]) == ["snrecon.recon.base"]
    assert violations("io", ["snrecon.networks.varnet"]) == ["snrecon.networks.varnet"]
    assert violations("recon", ["snrecon.physics.gram", "snrecon.recon.base"]) == []


def run(code: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_costs_little_beyond_torch() -> None:
    # Processor time, the smallest of three: other work on the machine can only add to it.
    code = (
        "import torch, time; start = time.process_time();"
        "import snrecon, snrecon.noise, snrecon.recon, snrecon.io;"
        "print(time.process_time() - start)"
    )
    assert min(float(run(code)) for _ in range(3)) < 1.0


def test_import_leaves_optional_and_heavy_libraries_alone() -> None:
    heavy = ["matplotlib", "lightning", "nibabel", "ismrmrd", "pywt", "scipy", "sigpy", "skimage"]
    code = (
        "import sys, torch; torch_has = set(sys.modules);"
        "import snrecon, snrecon.noise, snrecon.recon, snrecon.io, snrecon.cli.main;"
        f"print([m for m in {heavy} if m in sys.modules and m not in torch_has])"
    )
    assert run(code).strip() == "[]"


def test_the_command_line_parses_without_torch() -> None:
    assert run("import sys, snrecon.cli.main as m; m.parser(); print('torch' in sys.modules)") == (
        "False\n"
    )
