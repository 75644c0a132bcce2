"""The untrained decoder: sizes, weights, what normalisation makes immaterial."""

from __future__ import annotations

import pytest
import torch

from snrecon.networks.conv_decoder import ConvDecoder, layer_sizes, start_size


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_published_size_has_the_published_number_of_weights() -> None:
    network = ConvDecoder((64, 32), 30, 7, 160, (8, 4))
    block = 160 * 160 * 9 + 160 + 2 * 160  # convolution, bias, normalisation
    assert sum(p.numel() for p in network.parameters()) == 7 * block + 160 * 30 + 30
    assert network.code.shape == (1, 160, 8, 4)
    assert len(network.sizes) == 7


@pytest.mark.parametrize("grid", [(16, 16), (17, 9), (5, 40), (1, 3), (33, 20)])
@pytest.mark.parametrize("start", [None, (8, 4)])
def test_any_grid(grid: tuple[int, int], start: tuple[int, int] | None) -> None:
    image = ConvDecoder(grid, 2, 4, 3, start)()
    assert image.shape == (2, *grid)
    assert bool(torch.isfinite(image).all())
    assert float(image.detach().std()) > 0


def test_sizes_are_geometric_and_end_at_the_grid() -> None:
    # 8 x 4 to 512 x 256 in six steps: a factor of two each.
    sizes = layer_sizes((512, 256), 7, (8, 4))
    assert sizes == [*((8 * 2**i, 4 * 2**i) for i in range(1, 7)), (512, 256)]
    rows = [row for row, _ in layer_sizes((640, 368), 7, (8, 4))]
    assert rows == sorted(rows)
    assert rows[-2:] == [640, 640]
    ratios = [b / a for a, b in zip([8, *rows[:5]], rows[:6])]
    wanted = (640 / 8) ** (1 / 6)
    assert all(abs(ratio / wanted - 1) < 0.08 for ratio in ratios)  # rounded up at 8 to 17


def test_the_start_follows_the_grid() -> None:
    assert start_size((640, 320)) == (8, 4)
    assert start_size((128, 128)) == (8, 8)
    assert start_size((4, 4)) == (4, 4)
    assert start_size((100, 1)) == (8, 1)


def test_seed_decides_everything() -> None:
    first, second, other = (
        ConvDecoder((12, 10), 2, 3, 4, generator=seeded(seed))().detach() for seed in (5, 5, 6)
    )
    assert torch.equal(first, second)
    assert float((first - other).norm()) > 0.1 * float(first.norm())
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    ConvDecoder((12, 10), 2, 3, 4, generator=seeded(5))
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator was used"


def test_weights_are_uniform_within_the_root_of_the_inputs() -> None:
    network = ConvDecoder((8, 8), 2, 2, 40, generator=seeded(0))
    weight = network.convolutions[0].weight.detach()
    bound = (40 * 9) ** -0.5
    assert float(weight.abs().max()) <= bound
    # Mean and variance of 14400 uniform numbers, within four standard errors.
    count = weight.numel()
    assert abs(float(weight.mean())) < 4 * bound / (3 * count) ** 0.5
    spread = float((weight / bound).square().mean())
    assert abs(spread - 1 / 3) < 4 * (4 / 45 / count) ** 0.5


def test_normalisation_is_of_the_image_at_hand_whatever_the_mode() -> None:
    network = ConvDecoder((12, 10), 2, 3, 4).double()
    image = network.train()().detach()
    assert torch.equal(network.eval()(), image)
    # Scaling what a layer gives before ReLU changes nothing but for the 1e-5 in the variance.
    with torch.no_grad():
        for parameter in network.convolutions[0].parameters():
            parameter *= 50
        scaled = network()
    assert float((scaled - image).norm() / image.norm()) < 1e-2
    assert not dict(network.named_buffers()).keys() - {"code"}
