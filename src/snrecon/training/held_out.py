"""Scores of finished weights on simulated measurements of the validation images.

``python -m snrecon.training.held_out CONFIG.toml WEIGHTS`` prints the model card's table.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from snrecon.networks.store import load_weights
from snrecon.training.apply import apply, target_of
from snrecon.training.config import Config
from snrecon.training.config_file import load_config
from snrecon.training.gram import batch_gram
from snrecon.training.scores import nmse, sense_nmse
from snrecon.training.stream import validation_simulator


@dataclass(frozen=True)
class Row:
    """Mean NMSE of three reconstructions for one kind of measurement."""

    kind: str
    acceleration: float
    snr: tuple[float, float]
    zero_filled: float
    sense: float
    varnet: float
    better: float
    """Share of the measurements in which the network's NMSE is below that of SENSE."""

    def __str__(self) -> str:
        low, high = self.snr
        return (f"| {self.kind} | {self.acceleration:g} | {low:g} to {high:g} | "
                f"{self.zero_filled:.4f} | {self.sense:.4f} | {self.varnet:.4f} | "
                f"{self.better:.0%} |")


HEADER = ("| mask | R | mean SNR | zero-filled | CG-SENSE, best lambda each | network | "
          "network below SENSE |\n|---|---|---|---|---|---|---|")


def held_out(config: Config, weights: str | Path, count: int = 24, seed: int = 777) -> list[Row]:
    """Score weights against zero-filled and CG-SENSE with the best of seven lambdas.

    Args:
        config: Names the validation images and the simulation.
        weights: Shipped name or file.
        count: Measurements a row.
        seed: Of images, phases, coils, masks and noise; differs from the one used in training.
    """
    network = load_weights(config.network.name, weights)
    wanted = target_of(network)
    cases: list[tuple[str, float, tuple[float, float]]] = [
        ("random", rate, (10.0, 100.0)) for rate in (2.0, 4.0, 8.0)]
    cases += [(kind, 4.0, (10.0, 100.0))
              for kind in ("equispaced_fraction", "gaussian1d", "poisson")]
    cases += [("random", 4.0, snr) for snr in ((3.0, 10.0), (100.0, 300.0))]
    rows = []
    for kind, rate, snr in cases:
        settings = replace(config.simulation, kinds=[kind], accelerations=[rate], snr=list(snr))
        simulator = validation_simulator(replace(config, simulation=settings), seed)
        scores = []
        for index in range(count):
            batch = simulator.draw(index, 1)
            gram = batch_gram(batch.maps, batch.mask)
            with torch.inference_mode():
                answer = apply(network, batch)
                scores.append(torch.stack([nmse(batch.b, batch.target)[0],
                                           sense_nmse(batch.b, gram, batch.target)[0],
                                           nmse(answer, wanted(batch.target))[0]]))
        table = torch.stack(scores)
        zero, sense, varnet = table.mean(dim=0).tolist()
        better = float((table[:, 2] < table[:, 1]).float().mean())
        rows.append(Row(kind, rate, snr, zero, sense, varnet, better))
    return rows


if __name__ == "__main__":
    print(HEADER)
    for row in held_out(load_config(sys.argv[1]), sys.argv[2]):
        print(row)
