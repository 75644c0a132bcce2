"""Masks against the published definitions, written out by hand, and against sigpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from snrecon.errors import InputError
from snrecon.physics.masks import MASK_KINDS, Mask, make_mask
from snrecon.physics.poisson import poisson_disc

EXACT = ("uniform1d", "gaussian1d", "gaussian2d", "poisson", "poisson1d")
PLANAR = ("poisson", "gaussian2d")


def lines(mask: Mask) -> np.ndarray:
    """Sampled lines of a mask that is constant along the readout."""
    assert bool((mask.tensor == mask.tensor[..., :1]).all())
    return mask.tensor[..., 0].numpy()


def rate(kind: str) -> float:
    return 1 / 0.625 if kind == "partial_fourier" else 4.0


@pytest.mark.parametrize("kind", MASK_KINDS)
@pytest.mark.parametrize("grid", [(48, 36), (12, 48, 20), (33, 21)])
def test_every_kind_is_seeded_and_counts_what_it_samples(kind: str, grid: tuple[int, ...]) -> None:
    mask = make_mask(kind, grid, rate(kind), seed=3)
    assert mask.tensor.dtype == torch.bool
    assert tuple(mask.tensor.shape) == grid
    assert mask.acceleration == mask.tensor.numel() / mask.tensor.sum().item()
    assert torch.equal(mask.tensor, make_mask(kind, grid, rate(kind), seed=3).tensor)
    seeds = [make_mask(kind, grid, rate(kind), seed=s).tensor for s in range(8)]
    varies = any(not torch.equal(seeds[0], other) for other in seeds[1:])
    assert varies == (kind not in ("regular", "partial_fourier"))
    if mask.calibration:
        assert bool(mask.tensor[tuple(n // 2 for n in grid)])
    if len(grid) == 3:
        assert bool((mask.tensor == mask.tensor[..., :1]).all()), "the readout is always full"
        if kind not in PLANAR:
            assert bool((mask.tensor == mask.tensor[:1]).all())
    for part in (kind, f"R={mask.nominal:g}", f"achieved R={mask.acceleration:.3f}"):
        assert part in repr(mask)


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("acceleration", [1.5, 2, 4, 6.5])
def test_exact_kinds_meet_the_rounded_number_of_samples(kind: str, acceleration: float) -> None:
    grid = (96, 80)
    mask = make_mask(kind, grid, acceleration, seed=1)
    points = 96 * 80 if kind in PLANAR else 96
    repeats = 1 if kind in PLANAR else 80
    assert mask.tensor.sum() == round(points / acceleration) * repeats


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_acceleration_one_samples_everything(kind: str) -> None:
    assert bool(make_mask(kind, (15, 9), 1).tensor.all())


@pytest.mark.parametrize(("width", "count", "first"), [(320, 26, 147), (10, 4, 3), (11, 4, 4)])
def test_calibration_lines_are_where_fastmri_puts_them(width: int, count: int, first: int) -> None:
    mask = lines(make_mask("random", (width, 4), 2.2, calibration=count))
    assert first == (width - count + 1) // 2
    assert mask[first : first + count].all()
    assert first <= width // 2 < first + count


def test_default_calibration_is_eight_percent_at_four_and_four_at_eight() -> None:
    assert make_mask("random", (320, 4), 4).calibration == 26  # round(320 * 0.08)
    assert make_mask("equispaced", (320, 4), 8).calibration == 13  # round(320 * 0.04)


def test_random_lines_follow_the_probability_of_fastmri() -> None:
    width, acs, rate, draws = 100, 8, 4.0, 400
    masks = np.stack(
        [lines(make_mask("random", (width, 2), rate, acs, seed)) for seed in range(draws)]
    )
    outside = np.ones(width, bool)
    outside[46:54] = False
    wanted = (width / rate - acs) / (width - acs)
    error = np.sqrt(wanted * (1 - wanted) / (draws * outside.sum()))
    assert abs(masks[:, outside].mean() - wanted) < 4 * error
    assert masks.sum(1).std() > 2, "lines are drawn independently: their number varies"


def test_equispaced_is_a_lattice_plus_calibration_and_misses_its_nominal_rate() -> None:
    offsets = set()
    for seed in range(20):
        mask = make_mask("equispaced", (320, 4), 4, 26, seed)
        found = lines(mask)
        rest = np.flatnonzero(found[:147])
        offsets.add(int(rest[0]))
        reference = np.zeros(320, bool)
        reference[rest[0] :: 4] = True
        reference[147:173] = True
        assert np.array_equal(found, reference)
        assert mask.acceleration == pytest.approx(3.22, abs=0.025)
    assert offsets == {0, 1, 2, 3}


def test_equispaced_fraction_adjusts_its_spacing() -> None:
    width, acs, rate = 320, 26, 4
    spacing = rate * (acs - width) / (acs * rate - width)
    found_rates = []
    for seed in range(20):
        mask = make_mask("equispaced_fraction", (width, 4), rate, acs, seed)
        found = lines(mask)
        offset = int(np.flatnonzero(found)[0])
        reference = np.zeros(width, bool)
        reference[[round(p) for p in np.arange(offset, width - 1, spacing).tolist()]] = True
        reference[147:173] = True
        assert np.array_equal(found, reference)
        found_rates.append(mask.acceleration)
    assert np.mean(found_rates) == pytest.approx(4.0, abs=0.03)


def test_magic_covers_conjugate_positions_once() -> None:
    """At a spacing of four, each side's mirror image falls midway between the other's lines."""
    for seed in range(10):
        mask = lines(make_mask("magic", (256, 2), 4, 0, seed))
        frequency = np.flatnonzero(mask) - 128
        positive, negative = frequency[frequency > 0], -frequency[frequency < 0]
        assert 0 in frequency
        assert set(np.diff(positive)) == {4}
        assert set(np.diff(np.sort(negative))) == {4}
        assert (positive[0] - negative.min()) % 4 == 2


@pytest.mark.parametrize("width", [320, 97])
@pytest.mark.parametrize("rate", [2, 4, 8])
def test_magic_follows_fastmri_half_by_half(width: int, rate: int) -> None:
    acs = round(width * 0.32 / rate)
    step = round(width / (int(width / rate) - acs))
    references = []
    for offset in range(step):
        shift = (1, 2) if offset % 2 == 0 else (2, -1)
        positive, negative = np.zeros((width + 1) // 2, bool), np.zeros(width // 2, bool)
        positive[offset + shift[0] :: step] = True
        negative[offset + shift[1] :: step] = True
        reference = np.fft.fftshift(np.concatenate([positive, negative[::-1]]))
        reference[(width - acs + 1) // 2 :][:acs] = True
        references.append(reference.tobytes())
    found = {lines(make_mask("magic", (width, 2), rate, seed=s)).tobytes() for s in range(60)}
    assert found == set(references)


@pytest.mark.parametrize("width", [32, 33, 96])
@pytest.mark.parametrize("rate", [2, 3, 4])
def test_regular_lattice_contains_the_centre_line(width: int, rate: int) -> None:
    pure = lines(make_mask("regular", (width, 3), rate, calibration=0))
    assert np.array_equal(np.flatnonzero(pure) % rate, np.full(pure.sum(), width // 2 % rate))
    assert pure.sum() == len(range(width // 2 % rate, width, rate))
    more = lines(make_mask("regular", (width, 3), rate, calibration=8))
    start = (width - 7) // 2
    expected = pure.copy()
    expected[start : start + 8] = True
    assert np.array_equal(more, expected)


def test_partial_fourier_keeps_the_last_lines() -> None:
    mask = make_mask("partial_fourier", (128, 8), 1 / 0.625)
    assert np.array_equal(lines(mask), np.arange(128) >= 48)
    assert mask.acceleration == pytest.approx(1.6)
    assert mask.calibration == 2 * 16 + 1  # 48..64..80
    assert make_mask("partial_fourier", (256, 8), 16 / 9).calibration == 2 * 16 + 1
    for calibration, rate in ((40, 1.6), (None, 2.5)):
        with pytest.raises(InputError, match="partial Fourier"):
            make_mask("partial_fourier", (128, 8), rate, calibration)


def test_gaussian_masks_are_denser_in_the_centre_and_uniform_ones_are_not() -> None:
    def density(kind: str) -> tuple[float, float]:
        masks = np.stack([lines(make_mask(kind, (120, 2), 6, 0, s)) for s in range(200)])
        mean = masks.mean(0)
        return float(mean[50:70].mean()), float(mean[:20].mean())

    centre, edge = density("gaussian1d")
    assert centre > 5 * edge
    centre, edge = density("uniform1d")
    assert centre == pytest.approx(1 / 6, abs=0.025)
    assert edge == pytest.approx(1 / 6, abs=0.025)


@pytest.mark.parametrize("shape", [(48, 48), (24, 96), (1, 200)])
@pytest.mark.parametrize("rate", [3, 8])
def test_poisson_samples_keep_their_distance(shape: tuple[int, int], rate: int) -> None:
    none = np.zeros(shape, bool)
    wanted = round(none.size / rate)
    pattern, slope = poisson_disc(shape, wanted, none, np.random.default_rng(0))
    assert pattern.sum() == wanted
    assert slope > 0
    y, x = np.nonzero(pattern)
    half = [max(n / 2, 1) for n in shape]
    radius = 1 + slope * np.hypot((y - shape[0] // 2) / half[0], (x - shape[1] // 2) / half[1])
    allowed = np.sqrt(np.maximum(np.minimum(radius[:, None], radius[None]) ** 2 - 1, 1))
    scale = [np.maximum(allowed * n / max(shape), 1) for n in shape]
    distance = np.hypot((y[:, None] - y) / scale[0], (x[:, None] - x) / scale[1])
    np.fill_diagonal(distance, np.inf)
    assert distance.min() >= 1 - 1e-9
    # The same number of points at random would come far closer than the radius asks for.
    chance = np.random.default_rng(1).permutation(none.size)[:wanted]
    y, x = np.divmod(chance, shape[1])
    radius = 1 + slope * np.hypot((y - shape[0] // 2) / half[0], (x - shape[1] // 2) / half[1])
    allowed = np.sqrt(np.maximum(np.minimum(radius[:, None], radius[None]) ** 2 - 1, 1))
    scale = [np.maximum(allowed * n / max(shape), 1) for n in shape]
    distance = np.hypot((y[:, None] - y) / scale[0], (x[:, None] - x) / scale[1])
    np.fill_diagonal(distance, np.inf)
    assert distance.min() < 1


@pytest.mark.parametrize("rate", [3, 4, 8])
def test_poisson_density_agrees_with_sigpy(rate: int) -> None:
    sigpy = pytest.importorskip("sigpy.mri")
    n, seeds = 96, 4
    y, x = np.mgrid[:n, :n] - n // 2
    ring = np.minimum((np.hypot(y, x) / (n / 2) / 0.1).astype(int), 13).ravel()
    size = np.bincount(ring)
    ours, theirs = np.zeros(14), np.zeros(14)
    for seed in range(seeds):
        mask = make_mask("poisson", (n, n), rate, 0, seed)
        assert mask.acceleration == pytest.approx(rate, abs=0.005)
        other = np.abs(sigpy.poisson((n, n), rate, crop_corner=False, seed=seed))
        assert other.size / other.sum() == pytest.approx(rate, abs=0.1)
        ours += np.bincount(ring, mask.tensor.numpy().ravel()) / size / seeds
        theirs += np.bincount(ring, other.ravel()) / size / seeds
    assert np.corrcoef(ours, theirs)[0, 1] > 0.97
    # The innermost rings differ: sigpy packs discs in the continuum, this one on the grid.
    assert np.abs(ours - theirs)[2:].max() < 0.08


def test_poisson_is_quick() -> None:
    import time

    start = time.process_time()
    make_mask("poisson", (256, 256), 4)
    assert time.process_time() - start < 2.0


def test_planar_kinds_undersample_the_phase_encoding_plane() -> None:
    mask = make_mask("poisson", (24, 40, 16), 4, calibration=6).tensor
    plane = mask[..., 0]
    assert plane.any(0).sum() > 12
    assert plane.any(1).sum() > 12
    assert bool(plane[9:15, 17:23].all())
    flat = make_mask("gaussian2d", (6, 64, 8), 3, calibration=12).tensor[..., 0]
    assert bool(flat[:, 26:38].all()), "a block as wide as asked, cut to the short axis"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("spiral", (32, 32), 4), "known kinds: random, equispaced"),
        (("random", (32,), 4), "grid"),
        (("random", (32, 32), 0.5), "at least 1"),
        (("random", (32, 32), float("nan")), "at least 1"),
        (("random", (32, 32), 4, 33), "do not fit"),
        (("random", (32, 32), 4, -1), "do not fit"),
        (("random", (32, 32), 4, 9), "cannot be reached with 9"),
        (("poisson", (32, 32), 8, 12), "cannot be reached with 12"),
        (("uniform1d", (8, 8), 100, 0), "leaves nothing"),
        (("regular", (32, 32), 2.5), "whole"),
        (("equispaced", (32, 32), 2.5), "whole"),
        (("random", (32, 32), 4, 4, -1), "seed"),
    ],
)
def test_bad_requests_end_in_one_sentence(arguments: tuple, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_mask(*arguments)


def test_a_mask_without_samples_is_refused() -> None:
    empty = 0
    for seed in range(50):
        try:
            make_mask("random", (6, 6), 6, 0, seed)
        except InputError as error:
            empty += "no samples" in str(error)
    assert 5 < empty < 30  # a chance of (5/6)^6 = 0.33 each
