"""External programs as reconstructions; a small Python script stands in for one."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.small_problems import irregular_mask, small_scan

from snrecon.errors import InputError
from snrecon.noise import noise_map
from snrecon.recon.command import Command
from snrecon.recon.zero_filled import ZeroFilled

PROGRAM = """
import sys
import numpy as np
def read(name):
    dims = [int(n) for n in open(name + '.hdr').read().split('\\n')[1].split()]
    return np.fromfile(name + '.cfl', dtype='<c8').reshape(dims, order='F').squeeze()
kspace, maps = read(sys.argv[1]), read(sys.argv[2])
shifted = np.fft.ifftshift(kspace, axes=(0, 1))
coils = np.fft.fftshift(np.fft.ifft2(shifted, axes=(0, 1), norm='ortho'), axes=(0, 1))
image = (maps.conj() * coils).sum(-1)
if len(sys.argv) > 4:
    image = image[:4]
open(sys.argv[3] + '.hdr', 'w').write('# Dimensions\\n%d %d\\n' % image.shape)
image.astype('<c8').ravel(order='F').tofile(sys.argv[3] + '.cfl')
"""


@pytest.fixture
def command(tmp_path: Path) -> str:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    python = shlex.quote(sys.executable)
    return f"{python} {shlex.quote(str(script))} {{kspace}} {{maps}} {{image}}"


def test_the_program_gets_kspace_and_maps_in_the_scans_basis(command: str) -> None:
    scan = small_scan(irregular_mask()).to(torch.complex64)
    image = Command(command)(scan)
    coils = torch.fft.fftshift(
        torch.fft.ifft2(torch.fft.ifftshift(scan.kspace, dim=(-2, -1)), norm="ortho"), dim=(-2, -1)
    )
    torch.testing.assert_close(image, (scan.maps.conj() * coils).sum(0), rtol=1e-5, atol=1e-4)


def test_replicas_of_a_program(command: str) -> None:
    scan = small_scan(irregular_mask()).to(torch.complex64)
    result = noise_map(Command(command), scan, tolerance=0, max_passes=24)
    assert result.estimator == "replicas"
    assert "cannot be differentiated" in result.details["why"]
    maps, psi = scan.maps, scan.noise.covariance
    power = torch.einsum("cyx,cd,dyx->yx", maps.conj(), psi, maps).real / scan.acceleration
    expected = (power / 2).sqrt()
    inside = expected > 0
    ratio = (result.sigma[inside] / expected[inside]).mean()
    assert float(ratio) == pytest.approx(1, abs=0.06)


def test_maps_are_estimated_if_the_scan_has_none(command: str) -> None:
    scan = small_scan(irregular_mask()).to(torch.complex64)
    bound = Command("program {kspace} {image}").bind(scan)
    assert bound.frozen == ()
    assert not bound.batched
    assert not bound.differentiable


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("program {image}", "has no {kspace}"),
        ("program {kspace}", "has no {image}"),
        ("program '{kspace} {image}", "cannot be read"),
    ],
)
def test_bad_commands(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Command(text)


def test_failing_programs(command: str) -> None:
    scan = small_scan(irregular_mask()).to(torch.complex64)
    python = shlex.quote(sys.executable)
    cases = {
        "nowhere-to-be-found {kspace} {image}": "was not found",
        f"{python} -c 'raise SystemExit(3)' {{kspace}} {{image}}": "exit code 3",
        f"{python} -c 'pass' {{kspace}} {{image}}": "wrote no image",
        f"{command} small": "of shape",
    }
    for text, message in cases.items():
        kind = InputError if "found" in message else RuntimeError
        with pytest.raises(kind, match=message):
            Command(text)(scan)
    with pytest.raises(RuntimeError, match="longer than"):
        Command(f"{python} -c 'import time; time.sleep(9)' {{kspace}} {{image}}", 0.3)(scan)


def test_zero_filled_is_what_the_program_computes(command: str) -> None:
    scan = small_scan(irregular_mask()).to(torch.complex64)
    assert Command(command)(scan).shape == ZeroFilled()(scan).shape


def test_files_named_from_here_are_found(command, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    python = shlex.quote(sys.executable)
    scan = small_scan(irregular_mask())
    here = Command(f"{python} program.py {{kspace}} {{maps}} {{image}}")
    assert here.words[1] == str(tmp_path / "program.py")
    assert torch.equal(here(scan), Command(command)(scan))
    (tmp_path / "-w1").write_text("")  # no file that anybody means
    assert Command("bart pics -w1 {kspace} {image}").words[:3] == ["bart", "pics", "-w1"]
