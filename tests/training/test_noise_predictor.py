"""The scheme noise_predictor: unbiased labels, learning, exact resuming, one's own network."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest
import torch
from benchmarks.small_problems import irregular_mask, plane_mask, small_scan
from safetensors.torch import load_file

import networks_at_hand as nets
import real_files
from snrecon.errors import InputError
from snrecon.networks.noise_predictor import NoisePredictor
from snrecon.networks.store import load_weights, save_weights
from snrecon.noise import noise_map
from snrecon.noise.predicted import look
from snrecon.noise.problem import Problem
from snrecon.noise.surrogate import LineSurrogate
from snrecon.recon import VarNet
from snrecon.report.demo import save_scan
from snrecon.training import train
from snrecon.training.config import (
    Config,
    DataConfig,
    NetworkConfig,
    OutputConfig,
    ReconstructionConfig,
    SimulationConfig,
    TrainerConfig,
)
from snrecon.training.noise_labels import Label, label, reconstruction
from snrecon.training.noise_predictor import gamma_loss, sigma_error
from snrecon.training.prepare import prepare
from snrecon.training.stream import training_source


@pytest.fixture
def method(tmp_path):
    path = tmp_path / "small.safetensors"
    save_weights(nets.varnet(), path)
    return f"varnet:{path}"


def configuration(images, method, folder, **trainer) -> Config:
    settings = {"max_minutes": 0.0, "max_steps": 9, "batch": 2, "interval": 3,
                "precision": "float32", "warmup": 2, "seed": 5}
    return Config(
        data=DataConfig([images], [], voxel_sizes={"heads": 5.0}),
        scheme="noise_predictor",
        simulation=SimulationConfig(grids=[[32, 32]], coils=[3, 3], accelerations=[3.0], pool=4,
                                    kinds=["random"]),
        network=NetworkConfig("noise_predictor", {"features": 6}),
        reconstruction=ReconstructionConfig(method, measurements=8, probes=4),
        trainer=TrainerConfig(**{**settings, **trainer}),
        output=OutputConfig(str(folder), "predictor"),
    )


@pytest.mark.parametrize("mask", [irregular_mask(), plane_mask()], ids=["lines", "plane"])
def test_labels_are_unbiased(mask):
    recon, scan = VarNet(nets.varnet()), small_scan(mask)
    problem = Problem.of(recon, scan)
    reference = look(problem, LineSurrogate.of(problem)).reference
    true = noise_map(recon, scan, estimator="exact").sigma ** 2
    made = [label(recon, scan, 8, seed) for seed in range(60)]
    inside = made[0].weight > 0
    wanted = (true / reference.clamp_min(1e-30))[inside]
    for drawn in (torch.stack([one.target for one in made]),
                  torch.stack([one.halves[0] for one in made]),
                  torch.stack([one.halves[1] for one in made])):
        values = drawn[:, inside].double() / wanted
        z = (values.mean(0) - 1) / (values.std(0) / len(made) ** 0.5)
        # Voxels share probes, so the mean over them is told by its spread over the seeds.
        mean = values.mean(1)
        assert abs(float(mean.mean()) - 1) < 3.5 * float(mean.std()) / len(made) ** 0.5
        assert float(z.square().mean()) < 1.6


def test_the_loss_is_smallest_at_the_mean():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(1, 20000, 1, generator=generator) + 0.7  # negative values among them
    weight = torch.ones_like(target)
    eta = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([eta], line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = gamma_loss(eta.expand_as(target), target, weight).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert float(eta.detach().exp()) == pytest.approx(float(target.mean()), rel=1e-4)


def test_the_error_of_a_prediction_without_the_scatter_of_its_labels():
    generator = torch.Generator().manual_seed(1)
    true = 1 + torch.rand(200, 200, generator=generator)
    halves = torch.stack([
        true * torch.randn(4, 200, 200, generator=generator).square().mean(0) for _ in range(2)])
    weight = torch.ones(200, 200)
    assert sigma_error((5 * true).log(), halves, weight) < 0.03  # a common factor is free
    wrong = true * (1 + 0.4 * torch.randn(200, 200, generator=generator)).clamp_min(0.1)
    ratio = true / wrong
    expected = float((ratio / ratio.mean() - 1).square().mean().sqrt()) / 2
    assert sigma_error(wrong.log(), halves, weight) == pytest.approx(expected, rel=0.1)


def test_it_learns_what_the_reference_does_not_know(images, method, tmp_path):
    config = configuration(images, method, tmp_path / "run", max_steps=150, interval=150,
                           learning_rate=5e-3)
    settings = replace(config.reconstruction, measurements=16, probes=16)
    config = replace(config, reconstruction=settings,
                     data=replace(config.data, validation=config.data.images))
    path = train(config)
    with (tmp_path / "run" / "log.csv").open(newline="") as stream:
        last = list(csv.DictReader(stream))[-1]
    network = load_weights("noise_predictor", path)
    assert isinstance(network, NoisePredictor)
    errors = {"before": [], "after": []}
    for file in sorted((tmp_path / "run").glob("labels-*/validation/*.safetensors")):
        one = Label.open(file)
        eta = network(one.channels[None])[0]
        errors["after"].append(sigma_error(eta, one.halves, one.weight))
        errors["before"].append(sigma_error(torch.zeros_like(eta), one.halves, one.weight))
    before, after = (sum(errors[key]) / len(errors[key]) for key in ("before", "after"))
    assert after < 0.85 * before
    assert float(last["val_sigma_error"]) == pytest.approx(after, rel=1e-3)


def test_an_interrupted_run_continues_bit_for_bit(images, method, tmp_path):
    whole = train(configuration(images, method, tmp_path / "whole"))

    def stop(when):
        def progress(done, total, message):
            if message.startswith(when):
                raise KeyboardInterrupt
        return progress

    parts = configuration(images, method, tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        train(parts, progress=stop("sketched 5"))
    kept = sorted((tmp_path / "parts").glob("labels-*/*.safetensors"))
    assert len(kept) == 5
    times = [path.stat().st_mtime_ns for path in kept]
    with pytest.raises(KeyboardInterrupt):
        train(parts, resume=True, progress=stop("step 5,"))
    assert [path.stat().st_mtime_ns for path in kept] == times  # labels are not made again
    resumed = train(parts, resume=True)
    a, b = load_file(whole), load_file(resumed)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert set(a) == set(b)
    other = replace(parts, reconstruction=replace(parts.reconstruction, probes=6))
    with pytest.raises(InputError, match="other labels"):
        train(other, resume=True)


def test_ones_own_reconstruction_by_its_name(images, tmp_path, monkeypatch):
    (tmp_path / "mine_to_predict.py").write_text(
        "import torch\n"
        "def smooth(kspace):\n"
        "    image = torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(\n"
        "        kspace, dim=(-2, -1)), dim=(-2, -1), norm='ortho'), dim=(-2, -1))\n"
        "    size = image.abs().square().sum(0).sqrt()\n"
        "    return torch.tanh(size / size.mean())\n")
    monkeypatch.chdir(tmp_path)
    path = train(configuration(images, "mine_to_predict:smooth", tmp_path / "run"))
    assert path.is_file()
    for name in ("mine_to_predict:rough", "nowhere_at_all:smooth"):
        with pytest.raises(InputError, match=r"reconstruction\.method"):
            reconstruction(name)
    with pytest.raises(InputError, match="the methods are"):
        reconstruction("varnat")


def test_configurations_that_cannot_work(images, method, tmp_path):
    good = configuration(images, method, tmp_path / "run")
    cases = [
        (replace(good, scheme="supervised"), "belong together"),
        (replace(good, network=NetworkConfig("varnet")), "belong together"),
        (replace(good, reconstruction=ReconstructionConfig("")), r"reconstruction\.method"),
        (replace(good, reconstruction=ReconstructionConfig(method, 3, 4)), "at least 8"),
        (replace(good, trainer=replace(good.trainer, devices=2)), "not for the scheme"),
        (replace(good, reconstruction=ReconstructionConfig("varnet:absent")), "absent"),
    ]
    for config, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            train(config)
    assert not (tmp_path / "run").exists()


def test_it_learns_from_measured_scans(method, tmp_path):
    """A folder made by ``snrecon prepare``, some volumes of which are for validation."""
    (tmp_path / "raw").mkdir()
    for seed in range(4):
        save_scan(real_files.full_scan((32, 32), coils=2, seed=seed),
                  tmp_path / "raw" / f"s{seed}.npz")
    prepare([tmp_path / "raw"], tmp_path / "data", validation=0.5)
    data = str(tmp_path / "data")
    config = replace(configuration("", method, tmp_path / "run"), data=DataConfig([data], [data]))
    path = train(config)
    assert path.is_file()
    assert len(list((tmp_path / "run").glob("labels-*/*.safetensors"))) == 8
    with (tmp_path / "run" / "log.csv").open(newline="") as stream:
        last = list(csv.DictReader(stream))[-1]
    assert 0 <= float(last["val_sigma_error"]) < 2


def test_measurements_without_noise_are_left_out(images, method, tmp_path, monkeypatch):
    from snrecon.training import noise_labels

    config = configuration(images, method, tmp_path / "run")
    source, recon = training_source(config), reconstruction(method)
    made = label(recon, noise_labels.simulated_scan(source, 0), 4, 0)
    answers = iter([None, made, None])
    monkeypatch.setattr(noise_labels, "label", lambda *given: next(answers))
    found = noise_labels.labels(recon, config, source, 3, tmp_path / "labels")
    assert len(found) == 1
    again = noise_labels.labels(recon, config, source, 3, tmp_path / "labels")  # nothing is made
    assert torch.equal(again[0].target, made.target)
    answers = iter([None, None])
    with pytest.raises(InputError, match="none of the measurements has any noise"):
        noise_labels.labels(recon, config, source, 2, tmp_path / "none")
