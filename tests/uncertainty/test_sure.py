"""Risk estimates against dense Jacobians, known truths and repeated noise."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.small_problems import plane_mask, small_scan
from torch import Tensor

from known_object import GRID, Conjugating, clean, noisy, random, real_matrix, scan_of, truth
from snrecon.data import Scan
from snrecon.errors import InputError, SnreconWarning
from snrecon.physics.density import sampling_density
from snrecon.physics.fourier import fft, ifft
from snrecon.physics.jacobian import NotDifferentiableError
from snrecon.physics.thermal import NoiseColouring
from snrecon.recon import ConvDecoder, Sense, ZeroFilled
from snrecon.recon.forward_model import forward_model
from snrecon.recon.risk import PredictionRisk, ProjectedRisk, Risk
from snrecon.uncertainty.published_sure import compensated
from snrecon.uncertainty.sure import sure


def targets(scan: Scan) -> dict[str, Risk]:
    model = forward_model(scan)
    return {"prediction": PredictionRisk(model), "projected": ProjectedRisk(model, 0.01)}


def everything(monkeypatch: pytest.MonkeyPatch, scan: Scan) -> int:
    """Probes that run once through a whole basis, ``sqrt(n) e_k`` and ``i sqrt(n) e_k``: their
    ``E[v v^H] = I`` and ``E[v v^T] = 0`` hold exactly, so the traces are exact as well."""
    import sys

    n = scan.kspace.numel()

    def basis(problem: object, seed: int, indices: range) -> Tensor:
        v = torch.zeros(len(indices), n, dtype=torch.complex128)
        for row, k in enumerate(indices):
            v[row, k % n] = math.sqrt(n) * (1 if k < n else 1j)
        return v.reshape(-1, *scan.kspace.shape)

    module = sys.modules[sure.__module__]
    monkeypatch.setattr(module, "_white", basis)
    monkeypatch.setattr(module, "CURVATURE_PROBES", 2 * n)
    return 2 * n


@pytest.mark.parametrize(
    ("kind", "spectrum", "threshold"),
    [
        ("prediction", False, 0.3),
        ("prediction", True, None),
        ("projected", False, None),
        ("projected", True, 0.3),
    ],
)
def test_every_term_against_dense_matrices(kind, spectrum, threshold, monkeypatch) -> None:
    """To 1e-10, for maps that are real-linear only, coloured noise and a corner without signal."""
    scan = scan_of(spectrum=spectrum)
    recon = Conjugating(threshold=threshold)
    bound = recon.bind(scan)
    target = targets(scan)[kind]
    colour = NoiseColouring.of(scan)
    region = torch.zeros(GRID, dtype=torch.bool)
    region[1:7, 1:6] = True
    regions = {"corner": region} if kind == "projected" else {}
    probes = everything(monkeypatch, scan)
    found = sure(recon, scan, risk=kind, probes=probes, regions=regions)

    def tangent(v: Tensor) -> Tensor:
        return torch.vmap(lambda t: torch.func.jvp(bound.function, (scan.kspace,), (t,))[1])(v)

    response = real_matrix(lambda w: target.image(tangent(colour(w))), scan.kspace)
    own = real_matrix(lambda w: target.data(colour(w)), scan.kspace)
    counted = [(found.overall, target.counted)]
    if regions:
        counted.append((found.regions["corner"], target.counted & region))
    for part, where in counted:
        keep = where.flatten().repeat(2).double()[:, None]
        elements = int(where.sum())
        # Each real component of the white noise has the variance 1/2.
        penalty = 0.5 * float(torch.trace((keep * own).mT @ response)) / elements
        noise = 0.5 * float(torch.trace((keep * own).mT @ own)) / elements
        gap = (target.image(bound(scan.kspace)) - target.data(scan.kspace)).abs().square()
        residual = float(gap[where].sum()) / elements
        assert part.elements == elements
        assert part.penalty == pytest.approx(penalty, rel=1e-10)
        assert part.noise == pytest.approx(noise, rel=1e-10)
        assert part.residual == pytest.approx(residual, rel=1e-10)
        assert part.risk == pytest.approx(residual + 2 * penalty - noise, rel=1e-9)
    direct = targets(scan)["prediction"]
    fit = real_matrix(lambda w: direct.image(tangent(colour(w))), scan.kspace)
    white = real_matrix(lambda w: direct.data(colour(w)), scan.kspace)
    freedom = float(torch.trace(white.mT @ fit))
    assert found.degrees_of_freedom == pytest.approx(freedom, rel=1e-10)
    b, s = own.mT @ response, own.mT @ own
    misfit = (target.image(bound(scan.kspace)) - target.data(scan.kspace)) * target.counted
    pulled = own.mT @ torch.cat([misfit.flatten().real, misfit.flatten().imag])
    square = 2 * float(pulled @ pulled) + float(torch.trace(b @ b)) - float(torch.trace(s @ s)) / 2
    elements = found.overall.elements
    assert found.noise_error == pytest.approx(math.sqrt(max(square, 0)) / elements, rel=1e-8)


@pytest.mark.parametrize("plane", [False, True])
def test_projector_and_its_adjoint(plane) -> None:
    """``T``, ``H``, ``T^H`` against dense linear algebra, by lines and by conjugate gradients."""
    scan = scan_of(plane=plane)
    model = forward_model(scan)
    risk = ProjectedRisk(model, 0.01)
    n = math.prod(GRID)
    eye = torch.eye(n, dtype=torch.complex128).reshape(n, *GRID)
    a = model.encoding(eye).reshape(n, -1).mT
    mu = 0.01 * float(model.maps.abs().square().sum(0).max())
    wanted = torch.linalg.solve(a.mH @ a + mu * torch.eye(n), a.mH)
    y, x = scan.kspace, truth()
    white = model.whiten(y).flatten()
    support = model.support.flatten()
    assert torch.allclose(risk.data(y).flatten(), (wanted @ white) * support, atol=1e-9)
    assert torch.allclose(risk.image(x).flatten(), wanted @ a @ x.flatten() * support, atol=1e-9)
    u = random(*GRID, seed=4) * model.support
    left = (u.conj() * risk.data(y)).sum()
    assert complex((risk.back(u).conj() * y).sum()) == pytest.approx(complex(left), rel=1e-8)


def losses(recon, kind: str, repeats: int) -> tuple[Tensor, Tensor, Tensor]:
    """Estimate minus truth, the truth, and the stated distance, over repeats."""
    scan = scan_of()
    target = targets(scan)[kind]
    goal = target.data(clean(scan))
    bound = recon.bind(scan)
    rows = []
    for index in range(repeats):
        one = noisy(scan, index)
        found = sure(bound, one, risk=kind, probes=4, seed=index)
        error = (target.image(bound(one.kspace)) - goal).abs().square()[target.counted].mean()
        rows.append((found.risk - float(error), float(error), found.noise_error))
    return tuple(torch.tensor(rows, dtype=torch.float64).unbind(1))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["prediction", "projected"])
@pytest.mark.parametrize(
    "recon", [Sense(0.5), Conjugating(threshold=0.5)], ids=["tikhonov", "soft threshold"]
)
def test_unbiased_over_repeats(recon, kind) -> None:
    """The mean of estimate minus true squared error is zero within its own error bar."""
    gap, error, distance = losses(recon, kind, 60)
    standard_error = float(gap.std()) / math.sqrt(len(gap))
    assert abs(float(gap.mean())) < 4 * standard_error
    assert standard_error < 0.06 * float(error.mean())  # the test has power
    # And the scatter about the actual error is what each single estimate says of itself; that of
    # its four probes comes on top.
    squares = distance.square().mean()
    assert float(squares) <= 1.3 * float(gap.square().mean())
    assert float(squares) >= 0.6 * float(gap.square().mean())


def test_the_projected_target_is_the_image_where_everything_is_sampled() -> None:
    """Full sampling: the target is the object itself, and T y its optimal combination."""
    scan = scan_of(full=True)
    target = targets(scan)["projected"]
    support = forward_model(scan).support
    assert torch.allclose(target.data(clean(scan)), truth() * support, atol=1e-10)
    assert torch.allclose(target.image(truth()), truth() * support)
    assert torch.allclose(target.data(scan.kspace), Sense()(scan), atol=1e-10)
    found = sure(Sense(), scan, probes=32)
    # Least squares follows its data: no residual, and the risk is the variance of its noise.
    power = forward_model(scan).maps.abs().square().sum(0)[support]
    assert found.overall.residual < 1e-20
    assert found.risk == pytest.approx(float((1 / power).mean()), abs=4 * found.standard_error)
    assert found.degrees_of_freedom == pytest.approx(
        2 * int(support.sum()), abs=4 * found.degrees_of_freedom_error + 1e-8
    )
    assert "full sampling" in found.statement


def test_regions_add_up() -> None:
    scan = scan_of()
    left = torch.zeros(GRID, dtype=torch.bool)
    left[:, :4] = True
    found = sure(Conjugating(threshold=0.3), scan, regions={"left": left, "right": ~left}, probes=6)
    parts = found.regions.values()
    total = sum(p.risk * p.elements for p in parts)
    assert total == pytest.approx(found.risk * found.overall.elements, rel=1e-12)
    assert sum(p.elements for p in parts) == found.overall.elements


def test_probes_and_seeds(monkeypatch) -> None:
    """The same for any batching; a smaller error for more probes; another seed, other probes."""
    scan = scan_of()
    recon = Conjugating(threshold=0.3)
    one = sure(recon, scan, probes=24)
    assert sure(recon, scan, probes=24) == one
    bound = replace(recon.bind(scan), at_once=1)
    assert sure(bound, scan, probes=24).risk == pytest.approx(one.risk, rel=1e-12)
    other = sure(recon, scan, probes=24, seed=1)
    assert other.risk != one.risk
    spread = math.hypot(one.standard_error, other.standard_error)
    assert abs(other.risk - one.risk) < 4 * spread
    fine = sure(recon, scan, probes=8, tolerance=one.standard_error / one.risk / 1.5)
    assert fine.probes > 24
    assert fine.standard_error <= one.standard_error / 1.4
    with pytest.warns(SnreconWarning, match="more probes"):
        sure(recon, scan, probes=4, tolerance=1e-6, max_probes=8)


def test_standard_error_is_that_of_the_probes() -> None:
    scan = scan_of()
    runs = [sure(Conjugating(), scan, probes=8, seed=s, noise_error=False) for s in range(80)]
    spread = float(torch.tensor([r.risk for r in runs], dtype=torch.float64).std())
    stated = math.sqrt(sum(r.standard_error**2 for r in runs) / len(runs))
    assert stated == pytest.approx(spread, rel=4 / math.sqrt(2 * 79))
    assert runs[0].noise_error is None


def test_published_by_its_formula() -> None:
    """``-n s^2 + |x - x_zf|^2 + 2 s^2 div`` with a dense divergence over real components."""
    scan = scan_of()
    recon = Conjugating()
    bound = recon.bind(scan)
    model = forward_model(scan)
    found = sure(recon, scan, risk="published", probes=400)
    density = sampling_density(scan.sampled)
    coils = ifft(model.whiten(scan.kspace) / density, (-2, -1))
    power = model.maps.abs().square().sum(0)
    x_zf = torch.where(model.support, (model.maps.conj() * coils).sum(0) / power, 0)
    assert torch.allclose(compensated(model, scan.kspace), x_zf, atol=1e-12)
    n = 2 * int(model.support.sum())
    gap = float((bound(scan.kspace) - x_zf).abs().square().sum())
    variance = gap / n
    jacobian = real_matrix(
        lambda b: bound(fft(scan.maps * b[:, None], (-2, -1)) * scan.sampled), truth()
    )
    divergence = float(torch.trace(jacobian))
    wanted = (-n * variance + gap + 2 * variance * divergence) / (n / 2)
    assert found.details["variance_per_component"] == pytest.approx(variance, rel=1e-10)
    assert found.risk == pytest.approx(wanted, abs=4 * found.standard_error)
    assert found.standard_error < 0.05 * abs(wanted)
    assert found.noise_error is None
    regions = {"top": torch.arange(GRID[0])[:, None].expand(GRID) < 6}
    top = sure(recon, scan, risk="published", regions=regions).regions["top"]
    assert top.elements < found.overall.elements


def test_callables_need_maps() -> None:
    scan = scan_of()
    method = Sense(0.2)
    bound = method.bind(scan)

    def mine(y: Tensor) -> Tensor:
        return bound.function(y)

    with pytest.raises(InputError, match="maps="):
        sure(mine, scan)
    found = sure(mine, scan, maps=scan.maps)
    assert found.risk == pytest.approx(sure(method, scan).risk, rel=1e-9)
    assert sure(mine, scan, maps=scan.maps.numpy()).risk == found.risk
    with pytest.raises(InputError, match="maps must be a tensor or an array, not list"):
        sure(mine, scan, maps=[1.0])
    with pytest.raises(InputError, match="fit"):
        sure(mine, scan, maps=scan.maps[:2])
    with pytest.raises(InputError, match="real"):
        sure(lambda y: bound.function(y).abs(), scan, maps=scan.maps)
    with pytest.raises(InputError, match="maps"):
        sure(ZeroFilled("rss"), scan)

    def detached(y: Tensor) -> Tensor:
        return torch.from_numpy(np.array(bound.function(y.detach()).numpy()))

    with pytest.raises((NotDifferentiableError, RuntimeError)):
        sure(detached, scan, maps=scan.maps)


def test_bad_input() -> None:
    scan = scan_of()
    whole = torch.ones(GRID, dtype=torch.bool)
    with pytest.raises(InputError, match="noise"):
        sure(Sense(0.1), replace(scan, noise=None))
    with pytest.raises(InputError, match="one of"):
        sure(Sense(0.1), scan, risk="true")
    with pytest.raises(InputError, match="2 probes"):
        sure(Sense(0.1), scan, probes=1)
    for options in ({"probes": 3.5}, {"max_probes": 64.0}, {"seed": "a"}):
        with pytest.raises(InputError, match="must be a whole number"):
            sure(Sense(0.1), scan, **options)
    with pytest.raises(InputError, match="tolerance must be a finite number"):
        sure(Sense(0.1), scan, tolerance="a")
    with pytest.raises(InputError, match="cutoff"):
        sure(Sense(0.1), scan, cutoff=0)
    with pytest.raises(InputError, match="tolerance"):
        sure(Sense(0.1), scan, tolerance=0)
    with pytest.raises(InputError, match="no regions"):
        sure(Sense(0.1), scan, risk="prediction", regions={"a": whole})
    with pytest.raises(InputError, match="boolean"):
        sure(Sense(0.1), scan, regions={"a": whole[:3]})
    corner = torch.zeros(GRID, dtype=torch.bool)
    corner[:2, :2] = True
    for kind in ("projected", "published"):
        with pytest.raises(InputError, match="'a' has no voxel"):
            sure(Sense(0.1), scan, risk=kind, regions={"a": corner})
    stack = replace(
        scan, kspace=scan.kspace[None], maps=scan.maps[None], mask=scan.mask, layout="stack"
    )
    with pytest.raises(InputError, match="slice"):
        sure(Sense(0.1), stack)


def test_reads_and_saves(tmp_path: Path) -> None:
    scan = scan_of()
    region = torch.ones(GRID, dtype=torch.bool)
    found = sure(Sense(0.2), scan.to(torch.complex64), regions={"all": region})
    text = str(found)
    for word in ("projected", "probes", "degrees of freedom", "cannot be judged", "all", "NMSE"):
        assert word in text
    found.save(tmp_path / "risk.json")
    kept = json.loads((tmp_path / "risk.json").read_text())
    assert kept["overall"]["risk"] == found.risk
    assert kept["regions"]["all"]["nmse"] == found.regions["all"].nmse
    double = sure(Sense(0.2), scan)
    assert found.risk == pytest.approx(double.risk, rel=1e-3)


def test_what_has_no_derivative_is_refused_before_it_is_computed() -> None:
    def tell(*_: object) -> None:
        pytest.fail("it was fitted")

    with pytest.raises(InputError, match="convdecoder cannot be estimated"):
        sure(ConvDecoder(layers=2, channels=4, iterations=20, progress=tell),
             small_scan(plane_mask()))
