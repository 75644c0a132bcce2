"""``snrecon prepare``: what is printed and written, and that interrupted work goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import real_files
from snrecon.io import load
from snrecon.report.demo import save_scan
from snrecon.training import prepare as module

Run = Callable[..., object]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for seed in range(2):
        save_scan(real_files.full_scan(seed=seed), folder / f"s{seed}.npz")
    return folder


def test_a_folder_becomes_training_data(snrecon: Run, raw: Path, out: Path) -> None:
    done = snrecon("prepare", raw, "--out", out / "data", "--coils", "2", "--validation", "0.5",
                   "--seed", "3")
    assert done.code == 0, done.err
    for words in ("2 volumes (0 were there already)", "2 slices", "training 1 volumes",
                  f"wrote {out / 'data' / 'index.json'}"):
        assert words in done.out
    assert load(out / "data" / "s1.npz").coils == 2
    again = snrecon("prepare", raw, "--out", out / "data", "--coils", "2")
    assert "(2 were there already)" in again.out


def test_an_interruption_says_how_to_go_on(
    snrecon: Run, raw: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "prepare_scan", stop)
        stopped = snrecon("prepare", raw, "--out", out / "data")
    assert stopped.code == 130
    assert stopped.err.startswith("error: interrupted; none is finished: run the same command")
    assert not (out / "data").exists()

    first = module.prepare_scan

    def stop_at_the_second(*arguments: object) -> object:
        monkeypatch.setattr(module, "prepare_scan", stop)
        return first(*arguments)

    monkeypatch.setattr(module, "prepare_scan", stop_at_the_second)
    stopped = snrecon("prepare", raw, "--out", out / "data")
    assert stopped.code == 130
    assert stopped.err.startswith("error: interrupted; finished volumes are in")
    assert (out / "data" / "s0.npz").is_file()


def test_a_failure_at_the_first_file_leaves_no_folder(snrecon: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"not a zip file")
    done = snrecon("prepare", tmp_path / "bad.npz", "--out", tmp_path / "new" / "pp")
    assert done.code == 2, done.err
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    done = snrecon("prepare", tmp_path / "bad.npz", "--out", tmp_path / "old")
    assert done.code == 2, done.err
    assert (tmp_path / "old").is_dir()  # it was there before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "--out"),
        (("--out", "{out}/d", "--coils", "-1"), "--coils"),
        (("--out", "{out}/d", "--coils", "0"), "virtual coils, not 0"),
        (("--out", "{out}/d", "--coils", "2", "--keep-noise"), "--keep-noise"),
        (("--out", "{out}/d", "--validation", "1"), "validation"),
        (("--out", "{out}/d", "--min-signal", "0.99"), "--min-signal"),
        (("--out", "{out}/d", "--key", "nothing"), "nothing"),
        (("--out", "{out}/d", "--noise-covariance", "/no/psi.npy"), "/no/psi.npy"),
        (("--out", "{raw}/s0.npz"), "s0.npz"),
        (("/no/such", "--out", "{out}/d"), "/no/such"),
    ],
)
def test_bad_usage(
    words: tuple[str, ...], expected: str, snrecon: Run, raw: Path, out: Path
) -> None:
    filled = [w.replace("{out}", str(out)).replace("{raw}", str(raw)) for w in words]
    done = snrecon("prepare", raw, *filled)
    assert done.code == 2, done.err
    assert len(done.err.splitlines()) == 1
    assert expected in done.err
    assert not list(out.rglob("*.npz"))
