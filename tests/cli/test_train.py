"""``snrecon train``: what is printed, Ctrl-C, and that errors come first and leave nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from snrecon.cli import progress as shown
from snrecon.training import run

pytest.importorskip("lightning")

Run = Callable[..., object]
TEXT = """
[data]
images = ["{folder}/heads.npz:x"]
validation = []
voxel_sizes = {{ heads = 5.0 }}
[simulation]
grids = [[32, 24]]
coils = [3, 3]
accelerations = [2]
kinds = ["random"]
pool = 4
[network]
name = "varnet"
unrolls = 1
features = 2
[trainer]
max_minutes = 0
max_steps = 3
interval = 2
batch = 1
workers = 0
seed = 1
precision = "float32"
[output]
folder = "{folder}/run"
name = "net"
"""
STRIP = ('kinds = ["random"]\n', 'kinds = ["gaussian2d"]\n')
"""A change that only the first batch can tell to be wrong."""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A training of three steps into ``run``."""
    y, x = np.mgrid[-1:1:48j, -1:1:40j]
    head = (x / 0.7) ** 2 + (y / 0.85) ** 2 < 1
    np.savez(tmp_path / "heads.npz", x=np.repeat(700 * head[None], 3, 0).astype(np.uint16))
    path = tmp_path / "run.toml"
    path.write_text(TEXT.format(folder=tmp_path))
    return path


def change(path: Path, old: str, new: str) -> None:
    """Replace one text of a configuration."""
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_a_run_shows_per_cent_and_is_continued_only_below_its_limits(
    snrecon: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shown, "INTERVAL", -1.0)
    done = snrecon("train", config)
    folder = config.parent / "run"
    assert (done.code, done.out) == (0, f"wrote {folder / 'net.safetensors'}\n"), done.err
    assert done.err.splitlines()[0].startswith("training: 33 % step 1, loss")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    again = snrecon("train", config, "--resume")
    assert (again.code, again.out, again.err) == (0, done.out, "")
    assert before == {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}

    change(config, "features = 2", "features = 3")
    other = snrecon("train", config, "--resume")
    assert other.code == 2
    assert other.err.startswith(f"error: {folder / 'last.ckpt'}: this run trained another network")
    assert len(other.err.splitlines()) == 1
    (folder / "last.ckpt").write_bytes(b"PK nothing")
    damaged = snrecon("train", config, "--resume")
    assert damaged.code == 2
    assert "checkpoint cannot be read" in damaged.err


def test_only_the_first_of_several_processes_says_where_the_weights_are(
    snrecon: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snrecon.training.train", lambda *_, **__: Path("net.safetensors"))
    for rank, said in (("0", "wrote net.safetensors\n"), ("1", "")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        done = snrecon("train", config)
        assert (done.code, done.out) == (0, said)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("workers = 0", 'workers = 0\ninitial = "no.safetensors"', "no such weights file"),
        ("workers = 0", "workers = 0\nlearning_rate = nan", "trainer.learning_rate must be a fini"),
        ("/heads.npz:x", "/nowhere", "/nowhere: there is no such file or folder."),
        ("validation = []", 'validation = ["/nowhere"]', "/nowhere: there is no such file or"),
        ("/heads.npz:x", "/heads.npz:z", "there is no array 'z'; it has x."),
        (*STRIP, "strips need mask kinds that leave kx fully sampled"),
    ],
)
def test_errors_come_before_what_is_slow_and_leave_nothing(
    old: str, new: str, sentence: str, snrecon: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old != STRIP[0]:  # which only the first batch can tell
        monkeypatch.setattr(run, "validation_batches", None)
        monkeypatch.setattr(run, "training_source", None)
    change(config, old, new)
    change(config, "/run", "/new/run")
    done = snrecon("train", config)
    assert done.code == 2, done.err
    assert len(done.err.splitlines()) == 1
    assert sentence in done.err
    assert not (config.parent / "new").exists()


def test_an_error_keeps_the_files_of_the_run_before(snrecon: Run, config: Path) -> None:
    assert snrecon("train", config).code == 0
    folder = config.parent / "run"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    change(config, *STRIP)
    assert snrecon("train", config, "--replace").code == 2
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_a_training_that_diverges_is_a_failure_in_one_sentence(snrecon: Run, config: Path) -> None:
    change(config, "max_steps = 3", "max_steps = 40\nlearning_rate = 1e30\nwarmup = 1")
    done = snrecon("train", config)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: the computation failed: the training diverged: after step ")
    assert len(done.err.splitlines()) == 1
    assert not (config.parent / "run" / "net.safetensors").exists()


def test_a_folder_that_holds_a_training_is_refused(snrecon: Run, config: Path) -> None:
    folder = config.parent / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("of the user's own")
    assert snrecon("train", config).code == 0
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for gone in (None, "last.ckpt", "log.csv"):  # what is left of one is enough
        if gone is not None:
            (folder / gone).unlink()
            del before[folder / gone]
        done = snrecon("train", config)
        assert done.code == 2
        assert done.err.startswith(f"error: {folder}: this folder holds a training already (net.")
        assert len(done.err.splitlines()) == 1
        assert before == {path: path.read_bytes() for path in folder.iterdir()}
    both = snrecon("train", config, "--resume", "--replace")
    assert both.code == 2
    change(config, "seed = 1\n", "seed = 2\n")
    assert snrecon("train", config, "--replace").code == 0
    assert before[folder / "net.safetensors"] != (folder / "net.safetensors").read_bytes()
    assert (folder / "last.ckpt").exists()


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(config: Path) -> None:
    change(config, "max_steps = 3", "max_steps = 1000000")
    process = subprocess.Popen(
        [sys.executable, "-m", "snrecon", "train", str(config)], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
        # What runs in the background ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        limit = time.monotonic() + 240
        while not (config.parent / "run" / "last.ckpt").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < limit
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    *progress, last = err.splitlines()
    assert last.startswith("error: interrupted; with --resume training goes on from the last")
    assert all(line.startswith("training: ") for line in progress)  # on a slow machine
