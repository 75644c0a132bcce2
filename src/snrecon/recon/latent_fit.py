"""The best image that a decoder can make, by steps of Gauss and Newton, BFGS and Newton."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from snrecon.errors import InputError, SnreconWarning
from snrecon.physics.operators import LinearOperator
from snrecon.recon.latent_image import TOGETHER, LatentImage

DONE = {torch.complex64: 1e-6, torch.complex128: 1e-10}
"""Newton step at which a fit to such data is done: its length in the metric of the curvature, over
the root of the number of parameters, which is in SDs of what the noise makes of them."""
ENOUGH = 0.1
"""The same, above which a fit that gets no further is no optimum."""
CLOSE, NEAR = 1e-3, 1e-6
"""The same, from where Newton's steps can take over, and where one exact curvature is enough for
them: it costs as much as some hundred gradients."""
GAUSS, SECANT, NEWTON, CHORDS = 15, 400, 12, 30
"""Most steps of every kind."""
FURTHER = 120
"""Most quasi-Newton steps from close to near."""
SLOW = 0.6
"""A step over the one before, above which those with the curvature of the start are given up."""
LATE = 0.02
"""Share of what was gained in all, below which a step ends those of Gauss and Newton."""


@dataclass(frozen=True, eq=False)
class Point:
    """The objective at one ``theta`` ``(parameters,)``."""

    theta: Tensor
    image: Tensor
    """``(ky, kx)``."""
    residual: Tensor
    """``A^H A x - b``, ``(ky, kx)``."""
    gradient: Tensor
    """``(parameters,)`` float64."""


@dataclass(frozen=True, eq=False)
class Optimum:
    """A minimum and its derivative."""

    theta: Tensor
    """``(parameters,)``."""
    b: Tensor
    """The data it belongs to, ``(ky, kx)``."""
    image: Tensor
    """``(ky, kx)``."""
    jacobian: Tensor
    """``(parameters, ky, kx)``."""
    factor: Tensor
    """Cholesky factor of the second derivative of the objective, float64."""
    distance: float
    """Last Newton step, as in :data:`DONE`."""

    def newton(self, gradient: Tensor) -> Tensor:
        """``-H^-1 g`` for gradients ``(batch, parameters)``."""
        return -torch.cholesky_solve(gradient.double().mT, self.factor).mT.to(gradient)

    def response(self, change: Tensor) -> Tensor:
        """Change of the image with that of b, ``(batch, ky, kx)``: ``J H^-1 2 Re(J^H db)``."""
        step = -self.newton(2 * _products(change, self.jacobian).to(self.theta))
        answer = step.to(self.jacobian.dtype) @ self.jacobian.flatten(1)
        return answer.reshape(change.shape)


class LatentFit:
    """``argmin_theta |A x(theta) - y|^2 + lamda |theta|^2`` (entries with a flat prior excepted).

    Args:
        image: x.
        gram: ``A^H A``.
        lamda: For whitened data 1/2 makes the minimum the most probable theta.
        done: Newton step at which a fit is done, as in :data:`DONE`.
        coarse: The same in single precision, which goes most of the way in less time; None: all in
            the precision of ``image``.

    The end is best in double precision: the curvature is a small difference of large terms in some
    directions, in which single precision would not find the minimum.
    """

    def __init__(
        self, image: LatentImage, gram: LinearOperator, lamda: float, done: float = 1e-10,
        coarse: LatentFit | None = None,
    ) -> None:
        self.image, self.gram, self.done, self.coarse = image, gram, done, coarse
        self.weights = lamda * image.prior

    def optimum(self, theta: Tensor, b: Tensor) -> Optimum:
        """The minimum that is reached from ``theta``.

        Steps of Levenberg and Marquardt, with the curvature of Gauss and Newton, do most of the
        way. They converge slowly where the decoder cannot make the image, so that a quasi-Newton
        iteration (BFGS) that begins with their curvature follows, each step of which costs one
        gradient, and Newton steps with the exact curvature end it.

        Args:
            theta: Where to start, ``(parameters,)``.
            b: ``(ky, kx)``.

        Returns:
            The minimum. An SnreconWarning is issued if it was not reached.
        """
        if self.coarse is None:
            point, _, inverse = self._descent(theta, b)
        else:
            like = self.coarse.image
            rough, _, inverse = self.coarse._descent(theta.to(like.rows), b.to(like.unit))
            point = self._point(rough.theta.to(theta), b)
            # As close as rounding let it come: from there on with the curvature that it found.
            point, _, _ = self._approach(point, inverse, b)
        return self._newton(point, b)

    def _descent(self, theta: Tensor, b: Tensor) -> tuple[Point, float, Tensor]:
        """Both kinds of steps before Newton's, and what :meth:`_secant` returns."""
        point, gauss = self._gauss_newton(self._point(theta, b), b)
        return self._approach(point, _inverse(gauss), b)

    def _approach(
        self, point: Point, inverse: Tensor, b: Tensor
    ) -> tuple[Point, float, Tensor]:
        """Quasi-Newton steps until it is near, or close if that takes too many."""
        point, distance, inverse = self._secant(point, inverse, b, CLOSE, SECANT)
        if distance > CLOSE:
            return point, distance, inverse
        return self._secant(point, inverse, b, NEAR, FURTHER)

    def _gauss_newton(self, point: Point, b: Tensor) -> tuple[Point, Tensor]:
        """The last point, and the curvature of the one before or of itself."""
        damping, gained = 0.1, 0.0
        gauss = self._gauss(point.theta)[1]
        for count in range(GAUSS):
            if count:
                gauss = self._gauss(point.theta)[1]
            change, promised = 0.0, -1.0
            while change >= 0 and damping < 1e8:
                step = _solved(gauss + damping * gauss.diagonal().diag(), point.gradient)
                after = point.theta + step.to(point.theta)
                change = self._change(point, after)
                promised = float(point.gradient @ step + step @ (gauss @ step) / 2)
                if change < 0.7 * promised:
                    damping /= 10
                elif change > 0.3 * promised:
                    damping = max(4 * damping, 1e-4)
            if change >= 0:
                break
            gained -= change
            point = self._point(after, b)
            if -change < LATE * gained:
                break
        return point, gauss

    def _secant(
        self, point: Point, inverse: Tensor, b: Tensor, goal: float, most: int
    ) -> tuple[Point, float, Tensor]:
        """Broyden, Fletcher, Goldfarb and Shanno's iteration until a step is as short as ``goal``;
        Nocedal and Wright, Numerical Optimization (2006), 6.1. Begins with an ``inverse`` of the
        curvature; also returns the last step's length, and the inverse that it ends with.
        """
        distance = float("inf")
        for _ in range(most):
            step = -inverse @ point.gradient
            distance = _length(point.gradient, step)
            if distance <= goal:
                break
            slope, share, change = float(point.gradient @ step), 1.0, 0.0
            for _ in range(20):
                after = point.theta + (share * step).to(point.theta)
                change = self._change(point, after)
                if change < 1e-4 * share * slope:
                    break
                share /= 2
            if not change < 0:
                break
            following = self._point(after, b)
            moved = (following.theta - point.theta).double()
            turned = following.gradient - point.gradient
            product = float(moved @ turned)
            if product > 1e-10 * float(moved.norm() * turned.norm()):
                eye = torch.eye(len(moved), dtype=moved.dtype, device=moved.device)
                left = eye - torch.outer(moved, turned) / product
                inverse = left @ inverse @ left.mT + torch.outer(moved, moved) / product
            point = following
        return point, distance, inverse

    def _newton(self, point: Point, b: Tensor) -> Optimum:
        """Newton's steps, damped where they do not descend, and what they end with."""
        damping, settled = 0.0, False
        jacobian, gauss = self._gauss(point.theta)
        curvature = self._curvature(point, gauss)
        for _ in range(NEWTON):
            following, way = point, 0.0
            while way == 0 and not settled and damping < 1e8:
                factor, info = torch.linalg.cholesky_ex(
                    curvature + damping * gauss.diagonal().diag())
                if int(info) == 0:
                    following, distance, way = self._chords(point, factor, b, damping == 0)
                    settled = damping == 0 and distance <= 100 * self.done
                if way == 0 and not settled:
                    damping = max(10 * damping, 1e-4)
            point = following
            if way <= 10 * self.done:
                break  # the curvature is of here; what may be left is rounding
            damping, settled = damping / 10 if damping > 1e-3 else 0.0, False
            jacobian, gauss = self._gauss(point.theta)
            curvature = self._curvature(point, gauss)
        factor, info = torch.linalg.cholesky_ex(curvature)
        if int(info) != 0:
            factor = _factor(gauss)
        distance = _length(
            point.gradient, -torch.cholesky_solve(point.gradient[:, None], factor)[:, 0])
        if int(info) != 0 or distance > ENOUGH:
            warnings.warn(
                "the latent fit ended where there is no minimum, so its noise map may be wrong; "
                "give a larger lambda or more restarts.", SnreconWarning, stacklevel=4)
        return Optimum(point.theta, b, point.image, jacobian, factor, distance)

    def _chords(
        self, point: Point, factor: Tensor, b: Tensor, several: bool
    ) -> tuple[Point, float, float]:
        """Steps with the curvature of one point, each of which costs one gradient, as long as they
        descend and shrink; the last point, the length of the step that is left, and of all that
        were taken."""
        last, way = float("inf"), 0.0
        while True:
            step = -torch.cholesky_solve(point.gradient[:, None], factor)[:, 0]
            distance = _length(point.gradient, step)
            if distance <= self.done or not distance < SLOW * last or (way and not several):
                return point, distance, way
            after = point.theta + step.to(point.theta)
            if not self._change(point, after) < 0:
                return point, distance, way
            point, last, way = self._point(after, b), distance, way + distance

    def nearby(self, start: Optimum, b: Tensor) -> Tensor:
        """Minima for other data, ``(batch, parameters)``, that are reached from one minimum.

        Newton steps with the curvature of ``start``, which suits data that differ by noise; where
        they converge slowly, a quasi-Newton iteration that begins with it, and where that gets
        stuck, :meth:`optimum`. Every item goes its own way.

        Args:
            start: Of the measured data.
            b: ``(batch, ky, kx)``.
        """
        theta = start.theta.expand(len(b), -1).clone()
        going = torch.arange(len(b), device=b.device)
        last = torch.full((len(b),), float("inf"), dtype=torch.float64, device=b.device)
        lost: list[int] = []
        for _ in range(CHORDS):
            if not len(going):
                break
            gradient = self._gradient(theta[going], b[going])
            step = start.newton(gradient)
            squared = -(gradient * step).sum(dim=1).double() / step.shape[1]
            distance = squared.clamp(min=0).sqrt()
            # Short steps that do not shrink are rounding.
            slow = ~(distance < SLOW * last[going])
            bad = slow & ~(distance < 100 * self.done)
            lost += going[bad].tolist()
            moving = ~slow & ~bad
            theta[going[moving]] += step[moving]
            last[going] = distance
            going = going[moving & (distance > self.done)]
        for item in [*lost, *going.tolist()]:
            point = self._point(start.theta, b[item])
            point, left, _ = self._secant(
                point, torch.cholesky_inverse(start.factor), b[item], self.done, SECANT)
            if left > 100 * self.done:
                point = self._point(self.optimum(point.theta, b[item]).theta, b[item])
            theta[item] = point.theta
        return theta

    def _gradient(self, theta: Tensor, b: Tensor) -> Tensor:
        """Of the objective, ``(batch, parameters)``."""
        pulled = torch.func.vjp(self.image, theta)
        (back,) = pulled[1](2 * (self.gram(pulled[0]) - b))
        return back + 2 * self.weights * theta

    def _point(self, theta: Tensor, b: Tensor) -> Point:
        pulled = torch.func.vjp(self.image, theta[None])
        residual = self.gram(pulled[0]) - b
        (back,) = pulled[1](2 * residual)
        gradient = back[0].double() + 2 * (self.weights * theta).double()
        return Point(theta, pulled[0][0], residual[0], gradient)

    def _change(self, before: Point, after: Tensor) -> float:
        """Of the objective, to ``after`` ``(parameters,)``, without a difference of large numbers.
        """
        step = self.image(after[None])[0] - before.image
        # b drops out of the change of the residual.
        residuals = 2 * before.residual + self.gram(step)
        data = (step.conj() * residuals).real.double().sum()
        prior = self.weights * (after - before.theta) * (after + before.theta)
        return float(data + prior.double().sum())

    def _gauss(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of the image, and the second derivative of the objective, float64, but for
        that of the image."""
        _, jacobian = self.image.jacobian(theta)
        gauss = torch.cat([
            _products(self.gram(part), jacobian) for part in jacobian.split(TOGETHER)])
        return jacobian, gauss + gauss.mT + 2 * self.weights.double().diag()

    def _curvature(self, point: Point, gauss: Tensor) -> Tensor:
        """Exact second derivative of the objective, ``(parameters, parameters)`` float64."""

        def slope(theta: Tensor) -> Tensor:
            (back,) = torch.func.vjp(self.image, theta[None])[1](2 * point.residual[None])
            return back[0]

        eye = torch.eye(len(gauss), dtype=point.theta.dtype, device=gauss.device)
        # Twice in reverse: the gradients of some layers have no forward mode.
        pull = torch.func.vjp(slope, point.theta)[1]
        bent = torch.vmap(lambda t: pull(t)[0], chunk_size=TOGETHER)(eye).double()
        return gauss + (bent + bent.mT) / 2


def _inverse(curvature: Tensor) -> Tensor:
    return torch.cholesky_inverse(_factor(curvature))


def _solved(matrix: Tensor, gradient: Tensor) -> Tensor:
    return -torch.cholesky_solve(gradient[:, None], _factor(matrix))[:, 0]


def _factor(matrix: Tensor) -> Tensor:
    try:
        return torch.linalg.cholesky(matrix)
    except torch.linalg.LinAlgError as error:
        what = ("the data do not determine every entry of the latent vector; give lambda above 0, "
                "or a decoder that uses all of them")
        if not bool(torch.isfinite(matrix).all()):
            what = "the fit of the latent vector ended in values that are not finite"
        raise InputError(f"{what}.") from error


def _products(images: Tensor, others: Tensor) -> Tensor:
    """``Re <other, image>`` of ``(n, ky, kx)`` and ``(m, ky, kx)``, ``(n, m)`` float64."""
    left, right = (torch.view_as_real(part.resolve_conj()).flatten(1) for part in (images, others))
    return (left @ right.mT).double()


def _length(gradient: Tensor, step: Tensor) -> float:
    """Of a Newton step, over the root of the number of parameters, in SDs of the noise."""
    return max(float(-(gradient @ step)), 0.0) ** 0.5 / len(step) ** 0.5
