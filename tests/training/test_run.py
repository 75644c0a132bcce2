"""Training learns, resumes exactly, and exports what it averaged."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from small_runs import configuration, rows
from snrecon.errors import InputError
from snrecon.networks.store import load_weights
from snrecon.networks.varnet import VarNet
from snrecon.training.apply import apply
from snrecon.training.checkpoint import Earlier, schedule_of, share_of
from snrecon.training.config import (
    Config,
    DataConfig,
    NetworkConfig,
    SimulationConfig,
    TrainerConfig,
)
from snrecon.training.curvature import around, curvature
from snrecon.training.gram import batch_gram
from snrecon.training.scores import logarithmic_error, nmse, sense_nmse
from snrecon.training.simulate import Simulator
from snrecon.training.stream import training_source


def test_one_slice_can_be_learnt(generator):
    """Overfitting one measurement: its error falls far below that of SENSE."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    head = ((x / 0.7) ** 2 + (y / 0.85) ** 2 < 1).float() * (1 + 0.5 * torch.sin(9 * x))
    settings = SimulationConfig(grids=[[32, 32]], coils=[4, 4], accelerations=[4.0],
                                kinds=["random"], snr=[20.0, 20.0])
    batch = Simulator({32: head[None]}, settings, 1).draw(0, 1)
    gram = batch_gram(batch.maps, batch.mask)
    torch.manual_seed(0)
    network = VarNet(3, 8)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(120):
        optimiser.zero_grad()
        answer = network(batch.b, gram, batch.support)
        logarithmic_error(answer, batch.target, batch.support).mean().backward()
        optimiser.step()
    learnt = float(nmse(network(batch.b, gram, batch.support).detach(), batch.target))
    sense = float(sense_nmse(batch.b, gram, batch.target))
    assert learnt < 0.2 * sense
    assert sense < float(nmse(batch.b, batch.target))


@pytest.mark.parametrize(("curvature", "minutes"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_an_interrupted_run_continues_bit_for_bit(images, tmp_path, curvature, minutes):
    """Also under a limit in time that it does not reach."""
    pytest.importorskip("lightning")
    from snrecon.training import train

    def settings(folder):
        return configuration(images, folder, curvature=curvature, max_minutes=minutes)

    whole = train(settings(tmp_path / "whole"))

    class Interrupted(Exception):
        pass

    def stop(done, total, message):
        if message.startswith("step 5,"):
            raise Interrupted

    parts = settings(tmp_path / "parts")
    with pytest.raises(Interrupted):
        train(parts, progress=stop)
    resumed = train(parts, resume=True)
    a, b = load_file(whole), load_file(resumed)
    assert set(a) == set(b)
    for key in a:
        assert torch.equal(a[key], b[key]), key
    other = train(replace(parts, trainer=replace(parts.trainer, seed=6)), replace=True)
    assert not torch.equal(load_file(other)["steps"], a["steps"])


def test_a_network_can_be_taught_to_be_straight_over_its_noise(images, tmp_path):
    """Two trainings from the same weights: noise bends the one that was asked for it less, and that
    one still reconstructs."""
    pytest.importorskip("lightning")
    from snrecon.training import train

    def settings(folder, **trainer):
        config = configuration(images, folder, max_steps=120, interval=120, learning_rate=5e-3,
                               ema=0.9, **trainer)
        return replace(
            config, network=NetworkConfig("unet", {"chans": 6, "pools": 2, "sense_steps": 8}),
            simulation=replace(config.simulation, snr=[3.0, 6.0], accelerations=[4.0]))

    held_out = training_source(settings(tmp_path, seed=77)).draw(0, 8)
    three = around(held_out, torch.Generator().manual_seed(1))
    taught = str(train(settings(tmp_path / "first")))
    found, errors = {}, {}
    for weight in (0.0, 3.0):
        folder = tmp_path / f"second{weight:g}"
        path = train(settings(folder, curvature=weight, initial=taught))
        with torch.no_grad():
            answer = apply(load_weights("unet", str(path)), three)
        found[weight] = float(curvature(answer, held_out.support).mean())
        errors[weight] = float(nmse(answer[:8], held_out.target).mean())
        assert ("curvature" in rows(folder)[0]) == (weight > 0)
    assert found[3.0] < 0.5 * found[0.0], (found, errors)
    assert errors[3.0] < 1.3 * errors[0.0], (found, errors)


def test_ctrl_c_reaches_the_caller_and_the_log_goes_back_to_the_checkpoint(images, tmp_path):
    pytest.importorskip("lightning")
    from snrecon.training import train

    def stop(done, total, message):
        if message.startswith("step 5,"):
            raise KeyboardInterrupt

    config = configuration(images, tmp_path / "run")
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=stop)
    assert signal.getsignal(signal.SIGINT) is handler
    again = replace(config, trainer=replace(config.trainer, interval=9))
    with pytest.raises(KeyboardInterrupt):
        train(again, replace=True, progress=stop)
    assert not (tmp_path / "run" / "last.ckpt").exists()  # that of the other run is not of this
    with pytest.raises(KeyboardInterrupt):
        train(config, replace=True, progress=stop)
    log = tmp_path / "run" / "log.csv"
    assert [row["step"] for row in rows(log.parent)] == ["3"]
    with log.open("a") as stream:  # what a run writes that ends before its next checkpoint
        stream.write("7.5,6,0.1\n7.6,")
    train(config, resume=True)
    assert [row["step"] for row in rows(log.parent)] == ["3", "6", "9"]
    minutes = [float(row["minutes"]) for row in rows(log.parent)]
    assert minutes == sorted(minutes)


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C as in a terminal: a shell lets what it starts in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_where_python_drops_it_is_noticed_after_the_step(images, tmp_path, interrupts):
    pytest.importorskip("lightning")
    from snrecon.training import train

    class Deleted:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    steps = []

    def drop(done, total, message):
        steps.append(message)
        Deleted()

    with pytest.raises(KeyboardInterrupt):
        train(configuration(images, tmp_path / "run"), progress=drop)
    assert len(steps) == 1  # the next one is the last, and not reported


def test_a_finished_run_is_continued_by_larger_limits_only(images, tmp_path):
    pytest.importorskip("lightning")
    from snrecon.training import train

    config = configuration(images, tmp_path / "run", max_steps=4)
    weights = train(config)
    before = weights.read_bytes()
    assert train(config, resume=True, progress=lambda *_: pytest.fail("a step")) == weights
    hours = replace(config, trainer=replace(config.trainer, max_steps=0, max_minutes=1e-6))
    assert train(hours, resume=True, progress=lambda *_: pytest.fail("a step")) == weights
    assert weights.read_bytes() == before
    train(replace(config, trainer=replace(config.trainer, max_steps=8)), resume=True)
    assert [row["step"] for row in rows(tmp_path / "run")] == ["3", "4", "7", "8"]
    assert weights.read_bytes() != before
    weights.unlink()
    with pytest.raises(InputError, match="its weights are not there"):
        train(config, resume=True)


def test_another_training_does_not_continue_a_run(images, tmp_path):
    """Nor does it touch its files; a checkpoint that kept no settings is continued as ever."""
    pytest.importorskip("lightning")
    from snrecon.training import train

    config = configuration(images, tmp_path / "run", max_steps=4)
    train(config)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    for change, key in (({"seed": 6}, "seed"), ({"curvature": 0.1}, "curvature")):
        other = replace(config, trainer=replace(config.trainer, max_steps=8, **change))
        with pytest.raises(InputError, match=rf"began with trainer\.{key} = "):
            train(other, resume=True)
    with pytest.raises(InputError, match=r'began with scheme = "supervised", .* has "ssdu"'):
        train(replace(config, scheme="ssdu"), resume=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}

    checkpoint = tmp_path / "run" / "last.ckpt"
    found = torch.load(checkpoint, weights_only=False)
    del found["settings"]
    torch.save(found, checkpoint)
    train(replace(config, trainer=replace(config.trainer, max_steps=6, weight_decay=0.1)),
          resume=True)
    assert [row["step"] for row in rows(tmp_path / "run")] == ["3", "4", "6"]


def test_the_learning_rate_goes_by_steps_where_these_are_limited():
    steps, both = TrainerConfig(max_minutes=0.0, max_steps=10), TrainerConfig(max_steps=10)
    time = TrainerConfig(max_minutes=2.0)
    for trainer in (steps, both):
        assert schedule_of(trainer, 5, 3500.0) == 0.5
        assert schedule_of(trainer, 12, 0.0) == 1.0
    assert [schedule_of(time, 5, s) for s in (0.0, 30.0, 500.0)] == [0.0, 0.25, 1.0]
    # The run ends at whichever limit comes first.
    assert share_of(steps, 5, 3600.0) == 0.5
    assert share_of(both, 5, 3600.0) == 1.0
    assert share_of(both, 5, 2700.0) == 0.75
    assert share_of(both, 10, 0.0) == 1.0
    assert share_of(time, 10**6, 30.0) == 0.25


def test_patience_that_ran_out_is_the_end(tmp_path):
    earlier = Earlier(tmp_path, step=5, seconds=30.0, waited=3, shapes={})
    for settings, finished in (({"patience": 3}, True), ({"patience": 4}, False), ({}, False),
                               ({"max_steps": 5}, True), ({"max_minutes": 0.5}, True)):
        assert earlier.finished(TrainerConfig(**settings)) is finished


def test_log_and_time_limit(images, tmp_path, monkeypatch):
    pytest.importorskip("lightning")
    from snrecon.training import run, train

    few = run.validation_batches
    monkeypatch.setattr(run, "validation_batches", lambda config, found: few(config, 1, found))

    config = configuration(images, tmp_path / "run", max_minutes=0.02, max_steps=0, interval=100)
    config = replace(config, data=replace(config.data, validation=[images]))
    config = replace(config, simulation=replace(config.simulation, coils=[3, 3]))
    path = train(config)
    assert path.name == "net.safetensors"
    last = rows(path.parent)[-1]
    assert 0.02 <= float(last["minutes"]) < 2
    assert 0 < float(last["val_nmse_R4"]) < 5
    with (path.parent / "baselines.csv").open() as stream:
        for row in csv.DictReader(stream):
            assert 0 < float(row["sense_nmse"]) < 1
            assert 0 < float(row["zero_filled_nmse"]) < 1


def test_missing_images_are_a_sentence(tmp_path):
    pytest.importorskip("lightning")
    from snrecon.training import train

    with pytest.raises(InputError, match="SNRECON_DATA"):
        train(configuration("nowhere.npz:x", tmp_path / "run"))


def test_a_missing_library_names_its_extra(images, tmp_path, monkeypatch):
    import sys

    from snrecon.training import train

    monkeypatch.setitem(sys.modules, "lightning", None)
    with pytest.raises(InputError, match=r"snrecon\[train\]"):
        train(configuration(images, tmp_path / "run"))


def test_held_out_scores_are_those_of_the_network(images, tmp_path):
    """With silent CNNs and steps of zero the network is zero-filling, and scores like it."""
    from snrecon.networks.store import save_weights
    from snrecon.training.held_out import held_out

    network = VarNet(1, 2)
    torch.nn.init.zeros_(network.steps)
    torch.nn.init.zeros_(network.cnns[0].leave.weight)
    save_weights(network, tmp_path / "net.safetensors")
    config = configuration(images, tmp_path)
    config = replace(config, data=replace(config.data, validation=[images]))
    scores = held_out(config, tmp_path / "net.safetensors", count=1)
    assert len(scores) == 8
    for row in scores:
        assert row.varnet == pytest.approx(row.zero_filled, rel=1e-3)
        assert row.acceleration >= 2


def test_training_starts_from_given_weights(images, tmp_path):
    pytest.importorskip("lightning")
    from snrecon.networks.store import save_weights
    from snrecon.training import train

    torch.manual_seed(9)
    network = VarNet(2, 3)
    save_weights(network, tmp_path / "first.safetensors")
    config = configuration(images, tmp_path / "run", initial=str(tmp_path / "first.safetensors"),
                           max_steps=1, learning_rate=1e-9, weight_decay=0.0)
    trained = load_file(train(config))
    for key, value in network.state_dict().items():
        torch.testing.assert_close(trained[key], value, rtol=1e-5, atol=1e-6)
    other = replace(config, network=NetworkConfig("varnet", {"unrolls": 2, "features": 4}))
    with pytest.raises(InputError, match="do not fit"):
        train(other, replace=True)
    missing = replace(config, trainer=replace(config.trainer, initial="absent.safetensors"))
    with pytest.raises(InputError, match="no such weights file"):
        train(missing, replace=True)


def test_weights_of_another_kind_of_network_are_not_begun_with(tmp_path):
    from snrecon.networks.e2e_varnet import E2EVarNet
    from snrecon.networks.modl import MoDL
    from snrecon.networks.store import save_weights
    from snrecon.training.apply import start_from
    from snrecon.training.blend import blend

    sizes = {"unrolls": 1, "chans": 2, "pools": 1, "sens_chans": 2, "sens_pools": 1}
    file = str(tmp_path / "e2e.safetensors")
    save_weights(E2EVarNet(**sizes, espirit=4), file)
    plain = E2EVarNet(**sizes)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    config = Config(DataConfig(["none"], []), network=NetworkConfig("e2e_varnet", sizes),
                    trainer=TrainerConfig(initial=file))
    with pytest.raises(InputError, match=r"do not fit .* with espirit = 4, not 0"):
        start_from(config, plain)
    assert all(torch.equal(before[name], tensor) for name, tensor in plain.state_dict().items())
    start_from(config, E2EVarNet(**sizes, espirit=4, drop=0.1))
    save_weights(plain, tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match="espirit = 4, not 0"):
        blend("e2e_varnet", file, tmp_path / "plain.safetensors", 0.5, tmp_path / "x.safetensors")
    modl = str(tmp_path / "modl.safetensors")
    save_weights(MoDL(2, 4, 3, 4), modl)
    config = Config(DataConfig(["none"], []), network=NetworkConfig("modl", {}),
                    trainer=TrainerConfig(initial=modl))
    start_from(config, MoDL(5, 4, 3, 4))  # more unrolls of one CNN


def test_workers_live_on_from_interval_to_interval(images, tmp_path, monkeypatch):
    """With what they have read and estimated; and a run that goes on draws what comes next."""
    pytest.importorskip("lightning")
    from snrecon.training import train

    config = configuration(images, tmp_path / "alone", max_steps=6)
    train(config)
    longer = replace(config.trainer, max_steps=9)
    alone = load_file(train(replace(config, trainer=longer), resume=True))
    told = tmp_path / "told.txt"

    class Telling:
        def __init__(self, config, found=None):
            self.source = training_source(config, found)

        def draw(self, index, count):
            with told.open("a") as stream:
                stream.write(f"{os.getpid()} {index}\n")
            return self.source.draw(index, count)

    monkeypatch.setattr("snrecon.training.run.training_source", Telling)
    config = configuration(images, tmp_path / "parts", workers=1, max_steps=6)
    train(config)
    first = [line.split() for line in told.read_text().splitlines()]
    told.unlink()
    config = replace(config, trainer=replace(config.trainer, max_steps=9))
    parts = load_file(train(config, resume=True))
    then = [line.split() for line in told.read_text().splitlines()]
    assert [int(index) for _, index in (*first, *then)] == list(range(9))
    for lines in (first, then):
        assert len({process for process, _ in lines}) == 1
        assert lines[0][0] != str(os.getpid())
    for name, tensor in alone.items():
        assert torch.equal(parts[name], tensor), name
