"""MoDL: a denoiser and a least-squares solver in turn.

Aggarwal et al., IEEE TMI 38:394 (2019): ``z = D_w(x)``,
``x <- (A^H A + lambda)^-1 (A^H y + lambda z)``, with one denoiser for all unrolls and a learned
lambda. The published denoiser has batch normalisation; here it has none, since statistics of a
batch have no meaning for a single scan.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from snrecon.errors import InputError
from snrecon.networks.normalisation import channels_go_last, channels_last
from snrecon.networks.rectifiers import let_through, open_gates
from snrecon.networks.regularised import Regularised
from snrecon.networks.varnet import Gram, d_normalised, noise_level, root_mean_square
from snrecon.physics.precision import lowered
from snrecon.physics.safe import may_overwrite
from snrecon.physics.solvers import conjugate_gradient, linear_solve, linearized_steps

INITIAL_LAMBDA = 0.05
SOLVED = {torch.float32: 1e-6, torch.float64: 1e-13}
"""Relative residual to which the implicit form solves, by precision."""
MOST_STEPS = 1000
"""Steps after which the implicit form gives up, with a warning."""


class MoDL(nn.Module):
    """Unrolled alternation of a shared CNN and conjugate gradients, in SNR units.

    The input is that of :class:`snrecon.networks.varnet.VarNet`, and so is the normalisation: the
    image is divided by the root mean square of ``b``, and the CNN is told the logarithm of that
    size as a third channel.

    What is solved for is the step from ``z`` to ``x``,
    ``(A^H A + lambda) (x - z) = A^H y - A^H A z``: the same equation, of which a few steps of
    conjugate gradients leave less than when they start from zero.

    Two ways of solving, chosen by ``implicit`` (which may be changed on the object):

    - 0: exactly ``iterations`` steps of conjugate gradients, a function of its input that is
      differentiated step by step;
    - 1: solved to rounding, in as many steps as that takes; differentiated is the solution (by
      another solve), in b and in lambda, and no steps are kept.

    Args:
        unrolls: Number of alternations K.
        features: Channels of the CNN.
        layers: Its convolutions.
        iterations: Steps of conjugate gradients where their number is fixed.
        implicit: 0 or 1, see above.

    Raises:
        InputError: for fewer than two layers, or ``implicit`` other than 0 and 1.
    """

    def __init__(
        self,
        unrolls: int = 10,
        features: int = 64,
        layers: int = 5,
        iterations: int = 10,
        implicit: int = 0,
    ) -> None:
        super().__init__()
        if layers < 2:
            raise InputError(f"the CNN of modl needs at least 2 layers, not {layers}.")
        if implicit not in (0, 1):
            raise InputError(f"implicit must be 0 or 1, not {implicit}.")
        self.unrolls, self.features, self.layers = unrolls, features, layers
        self.iterations, self.implicit = iterations, int(implicit)
        widths = [3, *[features] * (layers - 1), 2]
        self.cnn = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in itertools.pairwise(widths)
        )
        for layer in self.cnn:
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        last = self.cnn[-1]
        assert isinstance(last, nn.Conv2d)
        nn.init.normal_(last.weight, std=1e-3)  # starts as CG-SENSE drawn to the image before
        self.log_lamda = nn.Parameter(torch.tensor(math.log(INITIAL_LAMBDA)))

    @property
    def lamda(self) -> Tensor:
        """Weight of the denoised image, positive; 1 is that of fully sampled data."""
        return self.log_lamda.exp()

    def forward(self, b: Tensor, gram: Gram, support: Tensor) -> Tensor:
        """Reconstruct.

        Args:
            b: ``A^H y`` of whitened data, ``(..., ky, kx)`` complex, zero off the support.
            gram: ``A^H A`` on arrays ``(..., ky, kx)``.
            support: Boolean ``(ky, kx)`` (or with batch axes like ``b``): where the maps are
                non-zero.

        Returns:
            Image ``(..., ky, kx)``, exactly zero off the support.
        """
        shape = b.shape
        b = b.reshape(-1, *shape[-2:])
        if support.ndim > 2:
            support = support.expand(shape).reshape(b.shape)
        size = root_mean_square(b, support)
        b = b / size
        level = noise_level(size).expand(b.shape).unsqueeze(1)
        lamda = self.lamda
        x = b
        for _ in range(self.unrolls):
            z = self._denoise(x, level) * support
            x = z + self._solve(gram, b - gram(z), lamda)
        return (x * size).reshape(shape)

    def linearize(
        self, b: Tensor, gram: Gram, support: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The output and the derivative at one ``b`` ``(ky, kx)``, without any graph.

        Equal to ``torch.func.jvp``, at the cost of one forward pass for each tangent: what the
        solver and the rectifiers met at ``b`` is kept.

        Returns:
            The image ``(ky, kx)`` and a function from tangents ``(batch, ky, kx)`` of ``b`` to
            tangents ``(batch, ky, kx)`` of the image. Both without gradients.
        """
        with torch.no_grad():
            b = b.unsqueeze(0)
            size = root_mean_square(b, support)
            point = b / size
            level = noise_level(size).expand(b.shape).unsqueeze(1)
            lamda, points = self.lamda, int(support.sum())
            x, stages = point, []
            for _ in range(self.unrolls):
                gates: list[Tensor] = []
                z = self._denoise(x, level, gates) * support
                step, solve = self._linearized_solve(gram, point - gram(z), lamda)
                x = z + step
                stages.append((gates, solve))
            image = x

        def jvp(tangents: Tensor) -> Tensor:
            with torch.no_grad():
                d_b, d_size, d_level = d_normalised(tangents, point, size, points)
                d_level = d_level.expand(tangents.shape).unsqueeze(1)
                dx = d_b
                for gates, solve in stages:
                    dz = self._denoise_tangent(dx, d_level, gates) * support
                    dx = dz + solve(d_b - gram(dz))
                return dx * size + image * d_size

        return (image * size).squeeze(0), jvp

    def _linearized_solve(
        self, gram: Gram, right: Tensor, lamda: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        if self.implicit:
            return self._solve(gram, right, lamda), lambda dc: self._solve(gram, dc, lamda)
        operator = Regularised(gram, right.shape[-2:], lamda)
        return linearized_steps(operator, right, self.iterations)

    def _denoise_tangent(self, dx: Tensor, d_level: Tensor, gates: list[Tensor]) -> Tensor:
        """The derivative of :meth:`_denoise` where its rectifiers were open."""
        h = lowered(torch.cat([torch.view_as_real(dx).movedim(-1, 1), d_level], dim=1))
        for layer, gate in zip(self.cnn, [*gates, None], strict=True):
            assert isinstance(layer, nn.Conv2d)
            h = functional.conv2d(h, layer.weight.to(h.dtype), padding=1)
            h = h if gate is None else let_through(h, gate)
        return dx + torch.view_as_complex(h.to(dx.real.dtype).movedim(1, -1).contiguous())

    def _denoise(self, x: Tensor, level: Tensor, gates: list[Tensor] | None = None) -> Tensor:
        """``x`` plus the CNN's correction, ``(batch, ky, kx)``; ``gates`` gets where its rectifiers
        were open."""
        h = torch.cat([torch.view_as_real(x).movedim(-1, 1), level], dim=1)
        h = channels_last(h) if channels_go_last(h) else h
        for layer in self.cnn[:-1]:
            h = layer(h)
            # What a plain convolution gave is nobody else's.
            plain = type(layer) is nn.Conv2d and not layer._forward_hooks
            h = functional.relu(h, inplace=plain and may_overwrite(h))
            if gates is not None:
                gates.append(open_gates(h))
        h = self.cnn[-1](h).to(x.real.dtype)
        return x + torch.complex(*h.unbind(1))  # a view would depend on the layout in memory

    def _solve(self, gram: Gram, right: Tensor, lamda: Tensor) -> Tensor:
        if not self.implicit:
            operator = Regularised(gram, right.shape[-2:], lamda)
            return conjugate_gradient(operator, right, self.iterations, tolerance=0).value
        tolerance = SOLVED[right.real.dtype]
        operator = Regularised(gram, right.shape[-2:], None)
        return linear_solve(operator, right, lamda, MOST_STEPS, tolerance)
