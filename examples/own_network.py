"""The noise map of a network that snrecon has never seen.

All it needs is a function from k-space to an image. Here the function adds the coils up, runs a
small convolutional network of random weights over real and imaginary part, and returns a complex
image; put your own network in its place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import snrecon
from snrecon.physics.fourier import ifft
from snrecon.physics.phantom import simulate_scan

torch.manual_seed(0)
scan = simulate_scan(
    (64, 64), coils=6, acceleration=3, with_maps=True
)  # or snrecon.load("scan.h5")
assert scan.maps is not None
maps = scan.maps / (scan.maps.abs() ** 2).sum(0)
network = nn.Sequential(
    nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 3, padding=1)
)  # fmt: skip


def reconstruct(kspace: Tensor) -> Tensor:
    """k-space ``(coil, ky, kx)`` as it is in the file to a complex image ``(ky, kx)``."""
    image = (maps.conj() * ifft(kspace, (-2, -1))).sum(0)
    channels = torch.view_as_real(image).movedim(-1, 0)
    change = network(channels[None])[0].movedim(0, -1)
    return image + 0.3 * torch.view_as_complex(change.contiguous())


result = snrecon.noise_map(reconstruct, scan, tolerance=0.05)
print(result)
print("why:", result.details["why"])
print("is first order enough?", snrecon.noise.linearity_check(reconstruct, scan))
result.save("own_network.h5")
