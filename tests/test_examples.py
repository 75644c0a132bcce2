"""The examples and the code of the README run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import snrecon
from snrecon.cli.main import parser
from snrecon.physics.phantom import simulate_scan
from snrecon.report.demo import save_scan

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def run(words: list[str], folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_run(path: Path, tmp_path: Path) -> None:
    assert run([sys.executable, str(path)], tmp_path).strip()


def blocks(language: str) -> list[str]:
    """Code blocks of the README."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_readers_own_network(tmp_path: Path) -> None:
    """The README's lines for a network of one's own, on a scan as the demo leaves it."""
    code = next(block for block in blocks("python") if "network" in block)
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 14
    (tmp_path / "demo").mkdir()
    save_scan(simulate_scan((48, 48), 4, 3, 12), tmp_path / "demo" / "scan.npz")
    (tmp_path / "code.py").write_text(code)
    assert "NoiseMap(48x48" in run([sys.executable, "code.py"], tmp_path)
    result = snrecon.NoiseMap.load(tmp_path / "own_network.h5")
    assert result.estimator == "certified"
    assert result.relative_error <= 0.05


def test_commands_of_the_readme_parse() -> None:
    commands = [
        line.split("#")[0].split()
        for block in blocks("sh")
        for line in block.splitlines()
        if line.startswith("snrecon ") and "'" not in line
    ]
    assert len(commands) >= 5
    for words in commands:
        args = parser().parse_args(words[1:])
        assert args.command_name == words[1]


def test_links_of_the_documents_exist() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_picture_is_small() -> None:
    picture = ROOT / "docs" / "images" / "demo.png"
    assert "docs/images/demo.png" in README
    assert picture.stat().st_size < 400_000


def test_the_configuration_in_the_documentation_is_one(tmp_path: Path) -> None:
    from snrecon.training.config_file import load_config

    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    whole, prior, part = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    path = tmp_path / "training.toml"
    path.write_text(whole, encoding="utf-8")
    assert load_config(path).scheme == "ssdu"
    path.write_text('scheme = "score_matching"\n' + prior + '[data]\nimages = ["a.npz:x"]\n'
                    "validation = []\n", encoding="utf-8")
    assert load_config(path).prior.sigma == [0.01, 50.0]
    path.write_text(part + '[data]\nimages = ["data/"]\nvalidation = []\n', encoding="utf-8")
    assert load_config(path).scheme == "noise_predictor"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_configurations_are_valid(path: Path) -> None:
    from snrecon.training.config_file import load_config

    config = load_config(path)
    assert config.output.name == path.stem
