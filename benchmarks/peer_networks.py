"""The networks of fastMRI, MONAI and direct, run by their own code and through snrecon.

    python -m benchmarks.peer_networks

Each peer that can be imported (``fastmri``, ``monai``, ``direct``; from a checkout with
``PYTHONPATH``) builds a small network with random weights. Its image by the peer's code is compared
with that of the same weights in snrecon: fastMRI's are loaded from a torch file by name, the other
networks are wrapped. For the wrapped ones the noise map must come from Jacobian products that agree
with finite differences.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.table import publish, table
from snrecon.data import NoiseModel, Scan
from snrecon.noise import noise_map
from snrecon.recon import E2EVarNet, UNet, direct_varnet, monai_varnet

GRID = (64, 48)
COILS = 4
Row = tuple[str, str, str]


def small_scan() -> Scan:
    """Random coils with the spectrum of an image, every third line and ten in the centre."""
    generator = torch.Generator().manual_seed(1)
    rows, columns = ((torch.arange(n) - n // 2).float() for n in GRID)
    radius = (rows[:, None] ** 2 + columns**2).sqrt()
    kspace = torch.randn(COILS, *GRID, dtype=torch.complex64, generator=generator)
    mask = torch.zeros(GRID, dtype=torch.bool)
    mask[::3] = True
    mask[GRID[0] // 2 - 5 : GRID[0] // 2 + 5] = True
    maps = torch.randn(COILS, *GRID, dtype=torch.complex64, generator=generator)
    return Scan(
        kspace=1e-4 * kspace * (1 + 200 / (1 + radius**1.5)) * mask,
        mask=mask,
        maps=maps / maps.abs().square().sum(0).sqrt(),
        noise=NoiseModel(1e-12 * torch.eye(COILS, dtype=torch.complex64)),
    )


def randomised(network: nn.Module) -> nn.Module:
    """Weights that keep the size of activations, and biases."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in network.parameters():
            spread = (0.25 / part[0].numel()) ** 0.5 if part.ndim > 1 else 0.1
            part.copy_(spread * torch.randn(part.shape, generator=generator))
    return network.eval().requires_grad_(False)


def turned(scan: Scan) -> tuple[Tensor, Tensor, Tensor]:
    """k-space, mask of points and maps as the peers hold them: readout along the rows, pairs."""
    assert scan.maps is not None
    kspace, maps = (torch.view_as_real(part.mT.contiguous())[None]
                    for part in (scan.kspace, scan.maps))
    return kspace, scan.sampled.mT[None, None, :, :, None], maps


def distance(ours: Tensor, theirs: Tensor) -> str:
    """Largest difference over the largest value."""
    return f"{float((ours - theirs).abs().max() / theirs.abs().max()):.1e}"


def fastmri(scan: Scan) -> list[Row]:
    """U-Net and VarNet, loaded by name from torch files."""
    library: Any = import_module("fastmri")
    models: Any = import_module("fastmri.models")
    kspace, points, _ = turned(scan)
    rows = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        varnet = randomised(models.VarNet(3, 4, 3, 6, 3))
        torch.save({"state_dict": varnet.state_dict()}, Path(folder) / "varnet.pt")
        ours = E2EVarNet(Path(folder) / "varnet.pt")(scan)
        theirs = varnet(kspace, points[:, :, :1])[0].mT
        rows.append(("fastMRI VarNet", distance(ours, theirs), ""))
        unet = randomised(models.Unet(1, 1, 8, 3))
        torch.save(unet.state_dict(), Path(folder) / "unet.pt")
        image = library.rss(library.complex_abs(library.ifft2c(kspace[0])), 0)
        mean, deviation = image.mean(), image.std()
        normal = ((image - mean) / (deviation + 1e-11)).clamp(-6, 6)
        theirs = (unet(normal[None, None])[0, 0] * deviation + mean).mT
        rows.append(("fastMRI U-Net", distance(UNet(Path(folder) / "unet.pt")(scan), theirs), ""))
    return rows


def wrapped(name: str, recon: Any, scan: Scan, theirs: Tensor) -> Row:
    """Image and derivative of a wrapped network; the noise is so small that first order holds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sketch, replicas = (
            noise_map(recon, scan, estimator=estimator, tolerance=0, max_passes=64, seed=3)
            for estimator in ("sketch", "replicas"))
    ratio = float(sketch.sigma.mean() / replicas.sigma.mean())
    check = float(sketch.details["derivative_check"])
    return name, distance(recon(scan), theirs), f"{ratio:.3f} ({check:.1e})"


def monai(scan: Scan) -> list[Row]:
    """Its ``VariationalNetworkModel``, wrapped."""
    nets = "monai.apps.reconstruction.networks.nets"
    coils = import_module(f"{nets}.coil_sensitivity_model")
    unets, varnets = import_module(f"{nets}.complex_unet"), import_module(f"{nets}.varnet")
    widths = (8, 8, 16, 16, 16, 8)
    network = randomised(varnets.VariationalNetworkModel(
        coils.CoilSensitivityModel(features=widths), unets.ComplexUnet(features=widths), 2))
    kspace, points, _ = turned(scan)
    with torch.no_grad():
        theirs = network(kspace, points[:, :, :1])[0].mT
    return [wrapped("MONAI VarNet", monai_varnet(network), scan, theirs)]


def direct(scan: Scan) -> list[Row]:
    """Its ``EndToEndVarNet``, wrapped."""
    transforms: Any = import_module("direct.data.transforms")
    varnets: Any = import_module("direct.nn.varnet.varnet")
    network = randomised(varnets.EndToEndVarNet(transforms.fft2, transforms.ifft2, 2, 6, 2))
    with torch.no_grad():
        images = transforms.ifft2(network(*turned(scan)), dim=(2, 3))
    theirs = images.square().sum(-1).sum(1).sqrt()[0].mT
    return [wrapped("direct EndToEndVarNet", direct_varnet(network), scan, theirs)]


PEERS: dict[str, Callable[[Scan], list[Row]]] = {
    "fastmri": fastmri, "monai": monai, "direct": direct}


def main() -> None:
    """Compare with the peers that are here."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    scan, rows, absent = small_scan(), [], []
    for name, compare in PEERS.items():
        try:
            import_module(name)
        except ImportError:
            absent.append(name)
            continue
        rows += compare(scan)
    body = table(
        ["network", "image: largest difference, relative",
         "sketch over replicas (derivative check)"], rows)
    if absent:
        body += f"\n\nNot installed: {', '.join(absent)}."
    publish("peer_networks", "Networks of fastMRI, MONAI and direct through snrecon", body,
            keep=not absent)


if __name__ == "__main__":
    main()
