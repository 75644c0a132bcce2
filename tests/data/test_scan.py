"""Scans: what is accepted, what follows from the k-space, slices and undersampling."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from snrecon.data import Geometry, NoiseModel, Scan
from snrecon.errors import InputError, SnreconWarning

CK = torch.complex64


def data(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=CK, generator=torch.Generator().manual_seed(seed))


def test_sizes() -> None:
    flat, volume = Scan(data(3, 6, 5)), Scan(data(3, 4, 6, 5))
    stack = Scan(data(4, 3, 6, 5), layout="stack")
    assert (flat.coils, flat.grid, flat.slices) == (3, (6, 5), 1)
    assert (volume.coils, volume.grid, volume.slices) == (3, (4, 6, 5), 1)
    assert (stack.coils, stack.grid, stack.slices) == (3, (6, 5), 4)


@pytest.mark.parametrize("layout", ["grid", "stack"])
def test_the_mask_is_where_any_coil_is_not_zero(layout: Any) -> None:
    kspace = data(2, 3, 6, 5)
    kspace[..., ::2, :] = 0
    kspace[0, 0, 1, 1] = 0  # one coil alone may be zero by chance
    scan = Scan(kspace, layout=layout)
    expected = (kspace != 0).any(1 if layout == "stack" else 0)
    assert torch.equal(scan.sampled, expected)
    assert scan.acceleration == 2


def test_values_off_the_mask_are_no_data() -> None:
    kspace = data(2, 6, 5)
    mask = torch.zeros(6, 5, dtype=torch.bool)
    mask[::3] = True
    scan = Scan(kspace, mask=mask)
    assert not scan.kspace[:, ~mask].any()
    assert torch.equal(scan.kspace[:, mask], kspace[:, mask])
    assert scan.acceleration == 3


def test_sampled_zeros_stay_sampled() -> None:
    scan = Scan(torch.zeros(2, 6, 5, dtype=CK), mask=torch.ones(6, 5, dtype=torch.bool))
    assert scan.acceleration == 1


def test_lazily_conjugated_input() -> None:
    kspace = data(2, 6, 5).conj()
    scan = Scan(kspace, maps=kspace, noise=NoiseModel(torch.eye(2, dtype=CK).mH))
    assert torch.equal(scan.kspace, kspace)


@pytest.mark.parametrize(
    ("kspace", "options", "message"),
    [
        (torch.ones(2, 6, 5), {}, "must be complex"),
        (data(6, 5), {}, r"\(coil, \[kz,\] ky, kx\) is needed"),
        (data(2, 6, 5), {"layout": "stack"}, r"\(slice, coil, ky, kx\) is needed"),
        (data(1, 2, 3, 6, 5), {}, "is needed"),
        (data(0, 6, 5), {}, "no coils"),
        (data(2, 0, 5), {}, "no samples"),
        (data(2, 6, 5) * float("nan"), {}, "NaN or infinite"),
        (data(2, 6, 5) * float("inf"), {}, "NaN or infinite"),
        (torch.zeros(2, 6, 5, dtype=CK), {}, "no samples"),
        (data(2, 6, 5), {"mask": torch.zeros(6, 5)}, "no samples"),
        (data(2, 6, 5), {"mask": torch.ones(5, 6)}, r"mask has shape \(5, 6\)"),
        (data(2, 6, 5), {"mask": torch.ones(2, 6, 5)}, "mask has shape"),
        (data(2, 6, 5), {"maps": data(2, 5, 6)}, "coil maps of shape"),
        (data(2, 6, 5), {"maps": data(2, 6, 5) * float("nan")}, "coil maps contain NaN"),
        (data(2, 6, 5), {"noise": NoiseModel(torch.eye(3))}, "for 3 coils"),
        (data(2, 6, 5), {"noise": NoiseModel(torch.eye(2), torch.ones(6))}, "6 entries"),
        (data(2, 6, 5), {"repetitions": data(3, 2, 5, 6)}, "repetitions"),
    ],
)
def test_bad_input(kspace: torch.Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^a name: .*{message}"):
        Scan(kspace, source="a name", **options)


def test_a_slice_without_samples_is_refused() -> None:
    kspace = data(2, 3, 6, 5)
    kspace[1] = 0
    with pytest.raises(InputError, match="no samples"):
        Scan(kspace, layout="stack")


def test_noise_must_be_known_to_be_used() -> None:
    with pytest.raises(InputError, match=r"here: .*--noise-covariance"):
        Scan(data(2, 6, 5), source="here").require_noise()
    model = NoiseModel(torch.eye(2))
    assert Scan(data(2, 6, 5), noise=model).require_noise().coils == 2


def test_everything_follows_the_precision_of_the_kspace() -> None:
    scan = Scan(
        data(2, 6, 5).to(torch.complex128),
        maps=data(2, 6, 5),
        noise=NoiseModel(torch.eye(2), torch.ones(5)),
    )
    assert scan.maps is not None
    assert scan.maps.dtype == torch.complex128
    assert scan.require_noise().covariance.dtype == torch.complex128
    single = scan.to(CK)
    assert single.kspace.dtype == CK
    assert single.require_noise().covariance.dtype == CK
    assert single.sampled.dtype == torch.bool


class TestSlices:
    def stack(self) -> Scan:
        masks = torch.ones(4, 6, 5, dtype=torch.bool)
        masks[2, 1] = False
        return Scan(
            data(4, 3, 6, 5),
            mask=masks,
            maps=data(4, 3, 6, 5, seed=1),
            noise=NoiseModel(torch.eye(3)),
            geometry=Geometry((0.005, 0.001, 0.001), (0.1, 0.2, 0.3)),
            layout="stack",
            repetitions=data(7, 4, 3, 6, 5),
            attributes={"a": 1},
        )

    def test_one(self) -> None:
        stack = self.stack()
        one = stack.slice(2)
        assert one.layout == "grid"
        assert torch.equal(one.kspace, stack.kspace[2])
        assert torch.equal(one.sampled, stack.sampled[2])
        assert one.maps is not None
        assert stack.maps is not None
        assert torch.equal(one.maps, stack.maps[2])
        assert one.repetitions is not None
        assert one.repetitions.shape == (7, 3, 6, 5)
        assert one.noise is not None
        assert one.attributes == {"a": 1}
        assert one.geometry is not None
        assert one.geometry.position == pytest.approx((0.1, 0.2, 0.31))

    def test_counted_from_the_end(self) -> None:
        stack = self.stack()
        last, same = stack.slice(-1), stack.slice(3)
        assert torch.equal(last.kspace, same.kspace)
        assert last.geometry == same.geometry

    def test_all(self) -> None:
        stack = self.stack()
        assert torch.equal(torch.stack([s.kspace for s in stack]), stack.kspace)
        grid = Scan(data(2, 6, 5))
        assert [s is grid for s in grid] == [True]

    @pytest.mark.parametrize("index", [4, -5])
    def test_that_do_not_exist(self, index: int) -> None:
        with pytest.raises(InputError, match=rf"no slice {index}; the scan has 4 \(0 to 3\)"):
            self.stack().slice(index)


class TestUndersampling:
    def test_intersects_with_what_was_sampled(self) -> None:
        scan = Scan(data(2, 6, 5), mask=torch.arange(6)[:, None].expand(6, 5) > 0)
        mask = torch.arange(6)[:, None].expand(6, 5) % 2 == 0
        reduced = scan.undersample(mask)
        assert reduced.sampled[:, 0].tolist() == [False, False, True, False, True, False]
        assert torch.equal(reduced.kspace[:, 2], scan.kspace[:, 2])
        assert not reduced.kspace[:, 0].any()
        assert reduced.acceleration == 3

    def test_every_slice_and_repetition(self) -> None:
        kspace, repeated = data(2, 3, 6, 5), data(4, 2, 3, 6, 5)
        mask = torch.zeros(6, 5, dtype=torch.bool)
        mask[::2] = True
        reduced = Scan(kspace, layout="stack", repetitions=repeated).undersample(mask)
        assert torch.equal(reduced.kspace, kspace * mask)
        assert reduced.repetitions is not None
        assert torch.equal(reduced.repetitions, repeated * mask)

    def test_bad_masks(self) -> None:
        scan = Scan(data(2, 6, 5))
        with pytest.raises(InputError, match=r"shape \(5, 6\)"):
            scan.undersample(torch.ones(5, 6, dtype=torch.bool))
        with pytest.raises(InputError, match="no samples"):
            scan.undersample(torch.zeros(6, 5, dtype=torch.bool))


@pytest.mark.parametrize(("kept", "warned"), [
    ("whole numbers", True), ("lines", False), ("ellipse", False), ("random", False),
    ("all", False),
])
def test_single_zeros_are_pointed_out(kept: str, warned: bool, recwarn) -> None:
    generator = torch.Generator().manual_seed(0)
    kspace = torch.randn(2, 32, 30, dtype=torch.complex64, generator=generator) + 20
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 30), indexing="ij")
    if kept == "whole numbers":
        kspace[:, 3, 4] = kspace[:, 20, 7] = 0
    elif kept == "lines":
        kspace[:, ::3] = kspace[..., :2] = 0
    elif kept == "ellipse":
        kspace = kspace * (x**2 + y**2 <= 1)
    elif kept == "random":
        kspace = kspace * (torch.rand(32, 30, generator=generator) < 0.8)
    Scan(kspace)
    found = [str(w.message) for w in recwarn if issubclass(w.category, SnreconWarning)]
    assert len(found) == int(warned)
    if warned:
        assert "2 points scattered" in found[0]
    Scan(kspace, mask=torch.ones(32, 30, dtype=torch.bool))
    assert len([w for w in recwarn if issubclass(w.category, SnreconWarning)]) == int(warned)


def test_repetitions_are_of_the_sampled_points() -> None:
    generator = torch.Generator().manual_seed(0)
    kspace = torch.randn(2, 6, 4, dtype=torch.complex64, generator=generator)
    mask = torch.zeros(6, 4, dtype=torch.bool)
    mask[::2] = True
    repetitions = torch.stack([kspace, 2 * kspace])
    scan = Scan(kspace, mask=mask, repetitions=repetitions)
    assert not bool(scan.repetitions[..., ~mask].any())
    torch.testing.assert_close(scan.repetitions[..., mask], repetitions[..., mask])
    with pytest.raises(InputError, match="repetitions contain NaN"):
        Scan(kspace, mask=mask, repetitions=repetitions * float("nan"))


def test_a_stack_read_as_a_grid_is_told_apart() -> None:
    with pytest.raises(InputError, match='needs layout="stack"'):
        Scan(torch.ones(4, 2, 8, 6, dtype=torch.complex64), torch.ones(8, 6, dtype=torch.bool))
