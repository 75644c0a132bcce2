"""Curvature is none for linear functions, known for a square, and falls when it is trained away."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from measurements import seeded, simulated
from snrecon.training.curvature import LEAST, around, curvature, limited


def test_the_same_noise_is_added_and_subtracted_on_the_samples_with_sd_one():
    batch = simulated(grid=(64, 64), count=3, snr=5.0)
    three = around(batch, seeded())
    here, plus, minus = three.kspace.chunk(3)
    assert torch.equal(here, batch.kspace)
    assert torch.equal(three.target.chunk(3)[2], batch.target)
    torch.testing.assert_close(plus + minus, 2 * batch.kspace)
    off = ~batch.mask.unsqueeze(1).expand_as(plus)
    assert not plus[off].any()
    assert not minus[off].any()
    for noise, mask in zip(plus - here, batch.mask, strict=True):
        power = noise[:, mask].abs().square()
        assert abs(float(power.mean()) - 1) < 5 / power.numel() ** 0.5
    torch.testing.assert_close(three.b, three.with_adjoint().b)


def test_weak_noise_is_raised_to_a_share_of_the_image():
    batch = simulated(count=2, snr=3000.0)
    here, plus, _ = around(batch, seeded()).kspace.chunk(3)
    power = (batch.b.abs().square() * batch.support).sum((-2, -1)) / batch.support.sum((-2, -1))
    for noise, mask, size in zip(plus - here, batch.mask, power.sqrt(), strict=True):
        sd = float(noise[:, mask].abs().square().mean().sqrt())
        assert float(LEAST * size) > 5
        assert sd == pytest.approx(float(LEAST * size), rel=0.05)


def test_curvature_of_known_functions():
    batch = simulated(count=2)
    three = around(batch, seeded(1))
    assert float(curvature(three.b, batch.support).max()) < 1e-9
    # f(x) = x + a |x|^2: even part a |n|^2, odd part n + 2 a Re(x conj n).
    a = 0.05
    here, plus, _ = three.b.chunk(3)
    n = plus - here
    even = (a * n.abs().square() * batch.support).square().sum((-2, -1))
    odd = ((n + 2 * a * (here * n.conj()).real) * batch.support).abs().square().sum((-2, -1))
    found = curvature(three.b + a * three.b.abs().square(), batch.support)
    torch.testing.assert_close(found, even / odd, rtol=1e-3, atol=0)


def test_amplifying_noise_is_no_way_to_make_it_small():
    batch = simulated(count=2)
    three = around(batch, seeded(2))
    gain = torch.tensor(1.0, requires_grad=True)
    images = three.b.abs().square() + gain * three.b
    curvature(images, batch.support).sum().backward()
    assert gain.grad is not None
    assert abs(float(gain.grad)) < 1e-4


def test_an_empty_measurement_has_none():
    batch = simulated(count=1)
    empty = replace(batch, kspace=0 * batch.kspace).with_adjoint()
    found = curvature(around(empty, seeded()).b * 0, empty.support)
    assert float(found) == 0


def test_a_limit_lets_strong_curvature_off():
    c = torch.tensor([1e-4, 0.03, 3.0], requires_grad=True)
    slope, = torch.autograd.grad(limited(c, 0.03).sum(), c)
    torch.testing.assert_close(slope, 1 / (1 + c.detach() / 0.03) ** 2)
    assert torch.equal(limited(c, 0.0), c)
