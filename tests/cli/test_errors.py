"""Bad input: one plain sentence, the right exit code, nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import snrecon.noise as snrecon_noise
from snrecon.cli.progress import Progress
from snrecon.data import NoiseMap
from snrecon.io.cfl import write_pair

Run = Callable[..., object]

GOOD = {
    "kspace": (np.random.default_rng(1).standard_normal((2, 8, 8, 2)) @ [1, 1j]).astype("c8"),
    "noise_covariance": np.eye(2, dtype="c8"),
}


def broken(**changes: object) -> dict[str, object]:
    return {**GOOD, **changes}


def with_value(value: complex) -> np.ndarray:
    kspace = GOOD["kspace"].copy()
    kspace[0, 3, 4] = value
    return kspace


FILES = {
    "nan": (broken(kspace=with_value(np.nan)), "NaN"),
    "infinite": (broken(kspace=with_value(np.inf)), "infinite"),
    "no coils": (broken(kspace=np.zeros((0, 8, 8), "c8")), "coils"),
    "one axis": (broken(kspace=np.ones(8, "c8")), "shape"),
    "not complex": (broken(kspace=np.ones((2, 8, 8), "f4")), "complex"),
    "mask shape": (broken(mask=np.ones((8, 9), bool)), "mask"),
    "empty mask": (broken(mask=np.zeros((8, 8), bool)), "no samples"),
    "maps shape": (broken(maps=np.ones((3, 8, 8), "c8")), "maps"),
    "indefinite": (broken(noise_covariance=np.diag([1, -1]).astype("c8")), "positive definite"),
    "covariance size": (broken(noise_covariance=np.eye(3, dtype="c8")), "covariance"),
    "covariance nan": (broken(noise_covariance=np.full((2, 2), np.nan, "c8")), "NaN"),
}


def assert_one_sentence(done: object, code: int, *words: str) -> None:
    assert done.code == code, done.err  # type: ignore[attr-defined]
    lines = done.err.splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert lines[0].endswith(".")
    assert "Traceback" not in lines[0]
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize("case", FILES)
def test_bad_scans(case: str, snrecon: Run, tmp_path: Path, out: Path) -> None:
    arrays, word = FILES[case]
    np.savez(tmp_path / "bad.npz", **arrays)  # type: ignore[arg-type]
    done = snrecon("noise", tmp_path / "bad.npz", "--method", "zero_filled", "--out", out / "r.h5")
    assert_one_sentence(done, 2, "bad.npz", word)
    assert list(out.iterdir()) == []


def test_unknown_noise_names_the_option(snrecon: Run, tmp_path: Path, out: Path) -> None:
    kspace = GOOD["kspace"].copy()
    kspace[:, ::2] = 0
    np.savez(tmp_path / "bare.npz", kspace=kspace)
    words = ("noise", tmp_path / "bare.npz", "--method", "zero_filled", "--out", out / "r.h5")
    assert_one_sentence(snrecon(*words), 2, "bare.npz", "--noise-covariance")
    assert snrecon("info", tmp_path / "bare.npz").code == 0
    # A reconstruction alone may need maps, but never the noise of an RSS image.
    assert list(out.iterdir()) == []


UNFIT = [
    ("sense", 1, "recon", (), "only 1 calibration line,"),
    ("sense", 2, "noise", (), "only 2 calibration lines,"),
    ("zero_filled", 1, "recon", (), "only 1 calibration line,"),
    ("grappa", 2, "recon", (), "only 2 calibration lines,"),
    ("tv", 2, "noise", (), "only 2 calibration lines,"),
    ("wavelet", 2, "recon", (), "only 2 calibration lines,"),
    ("varnet", 2, "noise", (), "only 2 calibration lines,"),
    ("partial_fourier", 2, "recon", (), "lines are missing inside"),
    ("partial_fourier", 2, "noise", (), "lines are missing inside"),
    ("tv", 4, "noise", ("--estimator", "analytic"), "tv has no closed form"),
]


@pytest.mark.parametrize(("method", "lines", "command", "extra", "said"), UNFIT)
def test_a_method_that_does_not_fit_names_the_scan(
    method: str, lines: int, command: str, extra: tuple[str, ...], said: str,
    snrecon: Run, tmp_path: Path, out: Path,
) -> None:  # fmt: skip
    generator = np.random.default_rng(1)
    kspace = (generator.standard_normal((3, 24, 16, 2)) @ [1, 1j]).astype("c8")
    centre = {1: [12], 2: [11, 12], 4: [10, 11, 12, 13]}[lines]
    missing = sorted(set(range(24)) - {2, 5, 18, 21, *centre})
    kspace[:, missing] = 0
    np.savez(tmp_path / "few.npz", kspace=kspace, noise_covariance=np.eye(3, dtype="c8"))
    done = snrecon(
        command, tmp_path / "few.npz", "--method", method, *extra, "--out", out / "r.h5"
    )
    assert_one_sentence(done, 2, f"error: {tmp_path / 'few.npz'}: ", said)
    assert done.err.count("few.npz") == 1
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"PK\x03\x04broken", b"\x89HDF\r\n\x1a\n", None]
)
def test_foreign_files(content: bytes | None, snrecon: Run, tmp_path: Path, out: Path) -> None:
    path = tmp_path / "scan.npz"
    if content is not None:
        path.write_bytes(content)
    for command in ("info", "noise", "recon"):
        extra = () if command == "info" else ("--method", "sense", "--out", out / "r.h5")
        assert_one_sentence(snrecon(command, path, *extra), 2, "scan.npz")
    assert list(out.iterdir()) == []


USAGE = [
    ((), "give a command: demo, info, recon, noise, posterior, decompose, sure, merge, evaluate, "
         "prepare, train;"),
    (("--nonsense",), "snrecon: unrecognized arguments: --nonsense;"),
    (("dance",), "argument command: invalid choice: 'dance'"),
    (("noise",), "SCAN"),
    (("noise", "{scan}", "--out", "{out}/r.h5"), "--method"),
    (("noise", "{scan}", "--method", "sense", "--command", "x", "--out", "{out}/r.h5"),
     "--command"),
    (("merge", "{scan}", "{scan}"), "--out"),
    (("noise", "{scan}", "--command", "x {kspace}", "--out", "{out}/r.h5"), "{image}"),
    (("noise", "{scan}", "--command", "no-such-program {kspace} {image}", "--out", "{out}/r.h5"),
     "no-such-program"),
    (("noise", "{scan}", "--command", "x {kspace} {image}", "--estimator", "sketch", "--out",
      "{out}/r.h5"), "replicas"),
    (("noise", "{scan}", "--method", "sens", "--out", "{out}/r.h5"), "sense"),
    (("noise", "{scan}", "--method", "tv", "--device", "gpu", "--out", "{out}/r.h5"),
     "--device gpu is no name of a device; give cpu, cuda, cuda:1 or auto."),
    (("recon", "{scan}", "--method", "tv", "--device", "meta", "--out", "{out}/r.h5"),
     "not supported"),
    (("sure", "{scan}", "--method", "tv", "--device", "cuda:99"), "--device cuda:99 is not there"),
    (("posterior", "{scan}", "--method", "score", "--device", "cuda:99", "--out", "{out}/r.h5"),
     "--device cuda:99 is not there"),
    (("evaluate", "{scan}", "--method", "tv", "--device", "cuda:99"),
     "--device cuda:99 is not there"),
    (("evaluate", "{scan}", "--against", "{scan}", "--device", "auto"), "--device belongs to"),
    (("noise", "{scan}", "--command", "x {kspace} {image}", "--device", "auto", "--out",
      "{out}/r.h5"), "--device belongs to --method"),
    (("noise", "{scan}", "--method", "varnet:/no/such.safetensors", "--out", "{out}/r.h5"), "such"),
    (("noise", "{scan}", "--method", "sense", "--lambda", "-1", "--out", "{out}/r.h5"), "--lambda"),
    (("noise", "{scan}", "--method", "sense", "--estimator", "sketch", "--tolerance", "0", "--out",
      "{out}/r.h5"), "--tolerance"),
    (("noise", "{scan}", "--method", "sense", "--tolerance", "nan", "--out", "{out}/r.h5"), "nan"),
    (("noise", "{scan}", "--method", "sense", "--tolerance", "2", "--out", "{out}/r.h5"), "2"),
    (("noise", "{scan}", "--method", "sense", "--max-passes", "0", "--out", "{out}/r.h5"),
     "--max-passes"),
    (("noise", "{scan}", "--method", "sense", "--estimator", "magic", "--out", "{out}/r.h5"),
     "magic"),
    (("noise", "{scan}", "--method", "sense", "--acceleration", "2", "--out", "{out}/r.h5"),
     "--mask"),
    (("noise", "{scan}", "--method", "sense", "--mask", "regular", "--out", "{out}/r.h5"),
     "--acceleration"),
    (("noise", "{scan}", "--method", "sense", "--mask", "magi", "--acceleration", "2", "--out",
      "{out}/r.h5"), "magi"),
    (("noise", "{scan}", "--method", "sense", "--slice", "9", "--out", "{out}/r.h5"), "slice 9"),
    (("noise", "{scan}", "--method", "sense", "--key", "nothing", "--out", "{out}/r.h5"),
     "nothing"),
    (("noise", "{scan}", "--method", "sense", "--maps", "/no/maps.npy", "--out", "{out}/r.h5"),
     "/no/maps.npy"),
    (("noise", "{scan}", "--method", "sense", "--noise-covariance", "/no/psi.npy", "--out",
      "{out}/r.h5"), "/no/psi.npy"),
    (("noise", "{scan}", "--method", "sense", "--out", "{out}/r.txt"), ".h5"),
    (("noise", "{scan}", "--method", "sense", "--out", "{out}/.h5"), ".h5"),
    (("noise", "{scan}", "--method", "sense", "--out", "{out}/no/r.h5"), "does not exist"),
    (("noise", "{scan}", "--method", "sense", "--out", "{scan}"), "overwrite"),
    (("noise", "{scan}", "--method", "sense", "--state", "{out}/no/s", "--out", "{out}/r.h5"),
     "--state"),
    (("recon", "{scan}", "--method", "nothing", "--out", "{out}/r.h5"), "nothing"),
    (("recon", "{scan}", "--method", "sense", "--out", "{out}"), "known format"),
    (("merge", "{scan}", "--out", "{out}/r.h5"), "two"),
    (("merge", "{scan}", "{scan}", "--out", "{out}/r.h5"), "scan.npz"),
    (("merge", "/no/state", "/no/other", "--out", "{out}/r.h5"), "/no/state"),
    (("train", "/no/config.toml"), "/no/config.toml"),
    (("info", "{scan}", "--nonsense"),
     "snrecon info: unrecognized arguments: --nonsense; see 'snrecon info --help'."),
    (("merge", "{scan}", "{scan}", "--tolerance", "1", "--out", "{out}/r.h5"),
     "see 'snrecon merge --help'."),
    (("info", "{scan}", "--lambda", "-1"), "--lambda"),
    (("demo", "--out", "{scan}"), "scan.npz"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "expected"), USAGE, ids=lambda v: " ".join(v)[-60:])
def test_bad_usage(
    words: tuple[str, ...], expected: str, snrecon: Run, scan_file: Path, out: Path
) -> None:
    before = scan_file.read_bytes()
    places = {"{scan}": str(scan_file), "{out}": str(out)}
    filled = []
    for word in words:
        for place, value in places.items():
            word = word.replace(place, value)
        filled.append(word)
    assert_one_sentence(snrecon(*filled), 2, expected)
    assert list(out.iterdir()) == []
    assert sorted(p.name for p in scan_file.parent.iterdir()) == ["scan.npz"]
    assert scan_file.read_bytes() == before


def test_output_is_checked_before_the_scan_is_read(snrecon: Run, out: Path) -> None:
    done = snrecon("noise", "/no/scan.npz", "--method", "sense", "--out", out / "r.docx")
    assert_one_sentence(done, 2, "r.docx")


def test_failures_of_the_computation(
    snrecon: Run, scan_file: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the sky\nis falling")

    monkeypatch.setattr(snrecon_noise, "noise_map", fail)
    words = ("noise", scan_file, "--method", "sense", "--out", out / "r.h5")
    assert_one_sentence(snrecon(*words), 1, "the sky is falling")
    debug = snrecon(*words, "--debug")
    assert debug.code == 1
    assert "Traceback" in debug.err
    assert list(out.iterdir()) == []


def test_a_sampler_that_diverges_leaves_no_image(snrecon: Run, scan_file: Path, out: Path) -> None:
    settings = ("--set", "algorithm=4", "--set", "steps=2", "--set", "snr=1e20")
    done = snrecon("recon", scan_file, "--method", "score", *settings, "--out", out / "r.h5")
    assert_one_sentence(done, 1, "NaN or infinite")
    assert list(out.iterdir()) == []


def test_debug_shows_where(snrecon: Run) -> None:
    done = snrecon("info", "/no/such.npz", "--debug")
    assert done.code == 2
    assert "Traceback" in done.err
    assert "/no/such.npz" in done.err.splitlines()[-1]


def test_interruption_says_how_to_go_on(
    snrecon: Run, scan_file: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(snrecon_noise, "noise_map", interrupt)
    words = ("noise", scan_file, "--method", "sense", "--out", out / "r.h5")
    assert_one_sentence(snrecon(*words), 130, "--state FILE")
    early = snrecon(*words, "--state", out / "s.h5")
    assert_one_sentence(early, 130, "before anything was saved", "run the same command again")
    assert "s.h5" not in early.err
    (out / "s.h5").touch()
    late = snrecon(*words, "--state", out / "s.h5")
    assert_one_sentence(late, 130, f"the work so far is in {out / 's.h5'}")


def test_an_interrupted_command_without_states_speaks_of_none(
    snrecon: Run, scan_file: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("snrecon.cli.recon.load_scan", interrupt)
    done = snrecon("recon", scan_file, "--method", "sense", "--out", out / "r.h5")
    assert_one_sentence(done, 130, "interrupted")
    assert "state" not in done.err


def test_interrupted_in_the_middle_and_resumed(
    snrecon: Run, scan_file: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done before Ctrl-C counts: the same command goes on to the same result."""
    words = (
        "noise", scan_file, "--method", "sense", "--estimator", "sketch", "--tolerance", "0.15",
    )  # fmt: skip
    assert snrecon(*words, "--out", out / "whole.h5").code == 0

    def interrupt(self: Progress, done: int, total: int | None = None, message: str = "") -> None:
        if done >= 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "__call__", interrupt)
        stopped = snrecon(*words, "--state", out / "s.h5", "--out", out / "r.h5")
    assert_one_sentence(stopped, 130, str(out / "s.h5"))
    assert sorted(p.name for p in out.iterdir()) == ["s.h5", "whole.h5"]
    assert snrecon(*words, "--state", out / "s.h5", "--out", out / "r.h5").code == 0
    whole, resumed = (NoiseMap.load(out / name) for name in ("whole.h5", "r.h5"))
    assert whole.passes == resumed.passes > 8
    np.testing.assert_allclose(whole.sigma, resumed.sigma, rtol=1e-5)


@pytest.mark.parametrize("option", ["--maps", "--noise-covariance", "scan"])
@pytest.mark.parametrize("command", ["recon", "noise"])
def test_nothing_that_is_read_is_replaced(
    command: str, option: str, snrecon: Run, scan_file: Path, out: Path
) -> None:
    """Neither maps and covariance nor the pair of files that a name without ending stands for."""
    maps, psi = out / "maps.npz", out / "psi.npz"
    np.savez(maps, maps=np.ones_like(GOOD["kspace"]))
    np.savez(psi, noise_covariance=GOOD["noise_covariance"])
    write_pair(out / "raw.hdr", out / "raw.cfl", GOOD["kspace"].transpose(2, 1, 0)[:, :, None])
    before = {path: path.read_bytes() for path in out.iterdir()}
    if option == "scan":
        places = [(out / name, out / "raw.cfl") for name in ("raw", "raw.hdr", "raw.cfl")]
        runs = [(command, scan, "--method", "zero_filled", "--noise-covariance", psi, "--out", to)
                for scan, to in places]
    else:
        given = maps if option == "--maps" else psi
        runs = [(command, scan_file, "--method", "sense", option, given, "--out", given)]
    for words in runs:
        assert_one_sentence(snrecon(*words), 2, "would overwrite an input")
    assert before == {path: path.read_bytes() for path in out.iterdir()}


def test_the_state_is_not_the_result(snrecon: Run, scan_file: Path, out: Path) -> None:
    for words in (("--out", out / "r.h5", "--state", out / "r.h5"),
                  ("--out", out / "r.nii.gz", "--state", out / "r_sigma.nii.gz")):
        assert_one_sentence(snrecon("noise", scan_file, "--method", "tv", *words), 2,
                            "is the name of the result")
    assert not list(out.iterdir())


@pytest.mark.parametrize(("words", "said"), [
    (("noise", "--command", "x {kspace} {image}", "--set", "iterations=5"), "--set belongs to"),
    (("noise", "--method", "tv", "--estimator", "exact", "--max-passes", "5"), "--max-passes does"),
    (("posterior", "--method", "score", "--keep", "--out", "p.nii.gz"), "no room for samples"),
    (("recon", "--method", "tv", "--seed", 2**64), "below 2^64"),
])
def test_options_that_would_do_nothing(
    words: tuple[object, ...], said: str, snrecon: Run, scan_file: Path, out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(out)
    assert_one_sentence(snrecon(words[0], scan_file, *words[1:]), 2, said)
    assert not list(out.iterdir())
