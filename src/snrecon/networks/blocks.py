"""Small convolutional networks that the unrolled reconstructions share."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from snrecon.networks.rectifiers import let_through, open_gates
from snrecon.physics.precision import lowered

Gate = list[Tensor]
"""Where each rectifier was open at the primal point (:func:`open_gates`)."""


class HourglassCNN(nn.Module):
    """Two resolutions, six rectified 3x3 convolutions, a skip connection, a linear 3x3 output.

    The coarse level carries twice the features and widens the receptive field to about 30 voxels
    at a quarter of the cost. No normalisation layers: their statistics would make the output of a
    voxel depend on the whole image.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        features: Channels at full resolution.
    """

    def __init__(self, inputs: int, outputs: int, features: int) -> None:
        super().__init__()
        wide = 2 * features
        self.enter = nn.Conv2d(inputs, features, 3, padding=1)
        self.fine = nn.Conv2d(features, features, 3, padding=1)
        self.down = nn.Conv2d(features, wide, 3, padding=1, stride=2)
        self.coarse1 = nn.Conv2d(wide, wide, 3, padding=1)
        self.coarse2 = nn.Conv2d(wide, wide, 3, padding=1)
        self.up = nn.ConvTranspose2d(wide, features, 2, stride=2)
        self.merge = nn.Conv2d(features, features, 3, padding=1)
        self.leave = nn.Conv2d(features, outputs, 3, padding=1)
        for layer in self.children():
            assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.leave.weight, std=1e-3)  # starts as no regularisation at all

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, ky, kx)`` real to ``(batch, outputs, ky, kx)``."""
        grid = x.shape[-2:]
        x = _even(x)
        fine = functional.relu(self.fine(functional.relu(self.enter(x))))
        coarse = functional.relu(self.coarse1(functional.relu(self.down(fine))))
        coarse = functional.relu(self.coarse2(coarse))
        merged = functional.relu(self.up(coarse) + fine)
        return self.leave(functional.relu(self.merge(merged)))[..., : grid[0], : grid[1]]

    def linearize(self, x: Tensor) -> tuple[Tensor, Gate]:
        """Output at one ``x`` ``(1, inputs, ky, kx)`` and the gates for :meth:`tangent`."""
        grid = x.shape[-2:]
        h = _even(x)
        gates: Gate = []

        def rectify(value: Tensor) -> Tensor:
            gates.append(open_gates(value))
            return functional.relu(value)

        fine = rectify(self.fine(rectify(self.enter(h))))
        coarse = rectify(self.coarse1(rectify(self.down(fine))))
        coarse = rectify(self.coarse2(coarse))
        merged = rectify(self.up(coarse) + fine)
        y = self.leave(rectify(self.merge(merged)))[..., : grid[0], : grid[1]]
        return y, gates

    def tangent(self, x: Tensor, gates: Gate) -> Tensor:
        """Derivative along tangents ``(batch, inputs, ky, kx)``, in the precision asked for
        (:mod:`snrecon.physics.precision`); no gradients pass through."""
        grid = x.shape[-2:]
        x = lowered(x)
        enter, fine_gate, down, coarse1, coarse2, merge_gate, merge = gates
        fine = let_through(_linear(self.enter, _even(x)), enter)
        fine = let_through(_linear(self.fine, fine), fine_gate)
        coarse = let_through(_linear(self.down, fine), down)
        coarse = let_through(_linear(self.coarse1, coarse), coarse1)
        coarse = let_through(_linear(self.coarse2, coarse), coarse2)
        up = functional.conv_transpose2d(coarse, self.up.weight.to(x.dtype), stride=2)
        merged = let_through(up.add_(fine), merge_gate)
        merged = let_through(_linear(self.merge, merged), merge)
        return _linear(self.leave, merged)[..., : grid[0], : grid[1]]


def _linear(layer: nn.Conv2d, x: Tensor) -> Tensor:
    weight = layer.weight.to(x.dtype)
    return functional.conv2d(x, weight, stride=layer.stride, padding=layer.padding)


def _even(x: Tensor) -> Tensor:
    """Zero-padded at the far ends to even sizes, which the half-resolution level needs."""
    rows, columns = x.shape[-2] % 2, x.shape[-1] % 2
    return functional.pad(x, (0, columns, 0, rows)) if rows or columns else x
