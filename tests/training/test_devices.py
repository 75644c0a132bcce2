"""Two processes on the CPU train as one: they learn at one rate and stop after the same step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch

SCRIPT = '''
import itertools, os, sys
from dataclasses import replace
import torch
from snrecon.training import module, run, train
from snrecon.training.config import (
    Config, DataConfig, NetworkConfig, OutputConfig, SimulationConfig, TrainerConfig)
from snrecon.training.divergence import Diverged
from snrecon.training.stream import training_source

images, folder = sys.argv[1:]
rank = int(os.environ.get("LOCAL_RANK", "0"))
torch.set_num_threads(1)
config = Config(
    data=DataConfig([images], [], voxel_sizes={"heads": 5.0}),
    simulation=SimulationConfig(grids=[[32, 32]], coils=[2, 2], accelerations=[2.0], pool=4,
                                kinds=["random"]),
    network=NetworkConfig("varnet", {"unrolls": 1, "features": 2}),
    trainer=TrainerConfig(max_minutes=0.03, batch=1, interval=10, workers=0, devices=2, warmup=1,
                          precision="float32"))


def trained(name, data=config.data, **trainer):
    own = replace(config, data=data, trainer=replace(config.trainer, **trainer),
                  output=OutputConfig(f"{folder}/{name}", "net"))
    said = []
    module.set_rate = lambda *given: (rate(*given), said.append(given[0].param_groups[0]["lr"]))
    try:
        assert train(own).is_file()
        said.append("done")
    except Diverged:
        said.append("diverged")
    with open(f"{folder}/{name}-{rank}.txt", "w") as stream:
        stream.write(" ".join(map(str, said)))


rate, elapsed = module.set_rate, module.Training.elapsed.fget
# The clock of the second process goes faster.
module.Training.elapsed = property(lambda self: (1 + 2 * rank) * elapsed(self))
trained("time")

# The first process finds no improvement after its first validation, the second one always does.
errors = itertools.count(0, -rank)
run.validation_batches = lambda config, found: (
    {2.0: training_source(config).draw(0, 1)} if config.data.validation else {})
module.nmse = lambda *_: torch.tensor(float(next(errors)))
trained("patience", replace(config.data, validation=[images]), max_minutes=0.0, max_steps=60,
        patience=2)

# Only the second process sees a loss that is no number.
checked = module.Training.checked
module.Training.checked = lambda self, loss: checked(
    self, float("nan") if rank and self.global_step == 3 else loss)
trained("divergence", max_minutes=0.0, max_steps=60)
'''


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="its one device would be chosen")
def test_two_processes_decide_as_one(images, tmp_path):
    """Where they did not, the first would wait for gradients of a second that has stopped."""
    pytest.importorskip("lightning")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), images, str(tmp_path)], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})
    try:
        said, _ = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said

    def told(name: str) -> list[str]:
        one, other = ((tmp_path / f"{name}-{rank}.txt").read_text().split() for rank in (0, 1))
        assert one == other, name
        return one

    *rates, end = told("time")
    assert end == "done"
    assert len(rates) > 1
    assert float(rates[0]) > float(rates[-1])
    *rates, end = told("patience")
    assert end == "done"
    assert len(rates) == 15  # three validations, each after 5 steps of either process
    *rates, end = told("divergence")
    assert end == "diverged"
    assert len(rates) == 4
