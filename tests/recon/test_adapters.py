"""Networks of one's own: shapes they are given, what becomes of their answers, stand-ins."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from derivatives import check_derivatives
from snrecon.data import NoiseModel, Scan
from snrecon.errors import InputError, SnreconWarning
from snrecon.networks.varnet import root_mean_square
from snrecon.noise import noise_map
from snrecon.noise.problem import Problem
from snrecon.physics.fourier import ifft
from snrecon.recon import ImageModule, KspaceModule, direct_varnet, monai_varnet
from snrecon.recon.forward_model import KSPACE, NOISE
from support import random_complex

GRID = (9, 8)


def make_scan(seed: int = 1) -> Scan:
    lines = torch.tensor([1, 0, 1, 1, 1, 1, 0, 1, 0], dtype=torch.bool)
    mask = lines[:, None].expand(GRID).clone()
    root = random_complex(3, 3, seed=seed)
    maps = random_complex(3, *GRID, seed=seed + 1)
    maps[..., 0] = 0
    return Scan(
        kspace=20 * random_complex(3, *GRID, seed=seed + 2) * mask,
        mask=mask,
        maps=maps,
        noise=NoiseModel(root @ root.mH + torch.eye(3)),
    )


class Nonlinear(nn.Module):
    """Convolution and a smooth curve; remembers what it saw."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.Conv2d(channels, channels, 3, padding=1).requires_grad_(False)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        self.seen = x.detach()
        return x + torch.tanh(self.drop(self.layer(x)))


class Phase(nn.Module):
    def forward(self, x):
        self.seen = x
        return x + 0.5 * x.abs() * x.conj()


def z_of(scan: Scan) -> tuple[torch.Tensor, torch.Tensor]:
    white = scan.noise.whiten(scan.maps)
    size = white.abs().square().sum(0).sqrt()
    normal = torch.where(size > 0, white / size.clamp(min=1e-30), 0)
    return (normal.conj() * ifft(scan.noise.whiten(scan.kspace), (-2, -1))).sum(0), size


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("channels", ["pairs", "complex", "magnitude"])
def test_networks_of_images(channels, normalise):
    scan = make_scan()
    module = {"pairs": Nonlinear(2), "complex": Phase(), "magnitude": Nonlinear(1)}[channels]
    recon = ImageModule(module, channels, normalise=normalise)
    bound = recon.bind(scan)
    check_derivatives(bound.function, scan.kspace)
    z, size = z_of(scan)
    unit = root_mean_square(z, size > 0) if normalise else 1.0
    x = z / unit
    shapes = {"pairs": (1, 2, *GRID), "complex": (1, 1, *GRID), "magnitude": (1, 1, *GRID)}
    module = module.double().eval()
    if channels == "pairs":
        y = torch.view_as_complex(module(torch.view_as_real(x).permute(2, 0, 1)[None])[0]
                                  .permute(1, 2, 0).contiguous())  # fmt: skip
    else:
        y = module((x if channels == "complex" else x.abs())[None, None])[0, 0]
    assert tuple(module.seen.shape) == shapes[channels]
    wanted = torch.where(size > 0, y * unit / size.clamp(min=1e-30), 0)
    torch.testing.assert_close(bound(scan.kspace), wanted, rtol=1e-9, atol=1e-9)
    assert bound.method == f"image_module:{type(module).__name__}"
    assert noise_map(recon, scan, max_passes=16, tolerance=0).estimator == "certified"


class Kspace(nn.Module):
    """Any call, and whatever answer."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *inputs):
        return self.answer(*inputs)


def pairs(x):
    return torch.view_as_real(x.contiguous())


@pytest.mark.parametrize("readout_first", [False, True])
@pytest.mark.parametrize("real", [True, False])
def test_what_networks_of_kspace_are_given(real, readout_first):
    scan = make_scan()
    seen = []
    module = Kspace(lambda k, m, s: seen.append((k, m, s)) or k)
    recon = KspaceModule(
        module, ("kspace", "mask", "maps"), "kspace", combine="matched", pairs=real,
        readout_first=readout_first,
    )  # fmt: skip
    image = recon(scan)
    k, mask, maps = seen[0]
    white, mask_wanted = scan.noise.whiten(scan.kspace)[None], scan.sampled[None, None]
    maps_wanted = scan.noise.whiten(scan.maps)[None]
    wanted = [white, mask_wanted, maps_wanted]
    if readout_first:
        wanted = [one.mT for one in wanted]
    if real:
        wanted = [pairs(wanted[0]), wanted[1][..., None], pairs(wanted[2])]
    for given, expected in zip((k, mask, maps), wanted):
        torch.testing.assert_close(given, expected)
    combined = (maps_wanted[0].conj() * ifft(white[0], (-2, -1))).sum(0)
    torch.testing.assert_close(image, combined)


def test_what_networks_of_kspace_return():
    scan = make_scan()
    coils = ifft(scan.noise.whiten(scan.kspace), (-2, -1))
    rss = coils.abs().square().sum(0).sqrt()

    def images(k):
        return ifft(torch.view_as_complex(k.contiguous()), (-2, -1))

    def one(k, mask):
        return images(k)[:, 1]

    cases = [
        (lambda k, m: k, "kspace", rss),
        (one, "image", coils[1]),
        (lambda k, m: one(k, m)[:, None], "image", coils[1]),
        (lambda k, m: one(k, m).abs(), "image", coils[1].abs()),
        (lambda k, m: pairs(one(k, m)), "image_pairs", coils[1]),
        (lambda k, m: pairs(one(k, m)[:, None]), "image_pairs", coils[1]),
    ]
    for answer, output, wanted in cases:
        torch.testing.assert_close(KspaceModule(Kspace(answer), output=output)(scan), wanted)
    turned = KspaceModule(Kspace(lambda k, m: one(k, m).abs()), readout_first=True)
    torch.testing.assert_close(turned(scan), coils[1].abs())


class CascadesOfOther(nn.Module):
    """The call signature of MONAI's and direct's networks, with a curve in place of theirs."""

    def __init__(self, image: bool) -> None:
        super().__init__()
        self.image = image
        self.weight = nn.Parameter(torch.tensor(0.3), requires_grad=False)

    def forward(self, masked_kspace, mask, sensitivity_map=None):
        _, coils, height, width, two = masked_kspace.shape
        assert two == 2
        assert masked_kspace.is_contiguous()
        if self.image:
            assert tuple(mask.shape) == (1, 1, 1, width, 1)
        else:
            assert tuple(mask.shape) == (1, 1, height, width, 1)
            assert tuple(sensitivity_map.shape) == (1, coils, height, width, 2)
            masked_kspace = masked_kspace + 0.1 * sensitivity_map
        assert mask.dtype == torch.bool
        change = torch.tanh(masked_kspace) * self.weight
        k = masked_kspace - torch.where(mask, change, torch.zeros_like(change))
        if not self.image:
            return k
        x = ifft(torch.view_as_complex(k), (-2, -1))
        return (x.real**2 + x.imag**2).sum(dim=1).sqrt()


@pytest.mark.parametrize("make", [monai_varnet, direct_varnet])
def test_networks_of_other_packages(make):
    scan = make_scan()
    recon = make(CascadesOfOther(image=make is monai_varnet))
    bound = recon.bind(scan)
    image = bound(scan.kspace)
    assert image.shape == GRID
    assert not image.is_complex()
    check_derivatives(bound.function, scan.kspace)
    y = scan.kspace if make is monai_varnet else scan.kspace + 0.1 * scan.maps
    curve = 0.3 * torch.view_as_complex(torch.tanh(pairs(y)))
    wanted = ifft(y - curve * scan.sampled, (-2, -1)).abs().square().sum(0).sqrt()
    torch.testing.assert_close(image, wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(bound(scan.kspace + 9 * ~scan.sampled), image)


def test_estimated_maps_are_frozen_where_they_are_used():
    grid = (24, 24)
    mask = torch.ones(grid, dtype=torch.bool)
    scan = Scan(random_complex(2, *grid, seed=4), mask, noise=NoiseModel(torch.eye(2) + 0j))
    scan = scan.to(torch.complex128)
    uses = KspaceModule(Kspace(lambda k, s: k), ("kspace", "maps"), "kspace")
    assert uses.bind(scan).frozen == ("coil maps",)
    assert KspaceModule(Kspace(lambda k, m: k), output="kspace").bind(scan).frozen == ()


def test_an_absent_package_is_a_sentence(monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "monai"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "monai", None)  # absent, whether or not it is installed
    with pytest.raises(InputError, match="pip install monai"):
        monai_varnet()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageModule(nn.Identity(), "rgb"), "channels must be"),
        (lambda: KspaceModule(nn.Identity(), ("mask",)), "the inputs"),
        (lambda: KspaceModule(nn.Identity(), ("kspace", "noise")), "the inputs"),
        (lambda: KspaceModule(nn.Identity(), output="png"), "the output"),
        (lambda: KspaceModule(nn.Identity(), combine="sum"), "combined by"),
    ],
)
def test_mistakes_when_made(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_mistakes_when_bound_or_called():
    scan = make_scan()
    wrong = KspaceModule(Kspace(lambda k, m: k[:, 0, :3, :3, 0]))
    with pytest.raises(InputError, match=r"returned \(1, 3, 3\) where image of shape \(1, 9, 8\)"):
        wrong(scan)
    with pytest.raises(InputError, match="returned tuple"):
        ImageModule(Kspace(lambda x: (x, x)))(scan)
    plane = scan.sampled.clone()
    plane[0, 0] = False
    with pytest.raises(InputError, match="full readout lines only"):
        monai_varnet(CascadesOfOther(True)).bind(replace(scan, mask=plane))
    with pytest.raises(InputError, match="noise of this scan is not known"):
        KspaceModule(Kspace(lambda k, m: k)).bind(replace(scan, noise=None))
    unknown = replace(scan, noise=None)
    assert direct_varnet(CascadesOfOther(False))(unknown).shape == GRID


class Lost(nn.Module):
    """Leaves automatic differentiation on the way."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, x):
        inner = x.detach() if self.way == "detach" else torch.from_numpy(x.detach().numpy())
        return 0.5 * x + 0.5 * inner if self.way == "half" else inner


@pytest.mark.parametrize("way", ["detach", "numpy", "half"])
def test_a_network_that_loses_its_derivative_is_found_out(way):
    scan = make_scan()
    recon = ImageModule(Lost(way), normalise=False)
    with pytest.raises(InputError, match="replicas"):
        noise_map(recon, scan, estimator="sketch", max_passes=20)
    with pytest.warns(SnreconWarning, match="replicas"):
        result = noise_map(recon, scan, tolerance=0, max_passes=400)
    assert result.estimator == "replicas"
    wanted = noise_map(ImageModule(nn.Identity(), normalise=False), scan, estimator="exact").sigma
    inside = wanted > 0
    assert float((result.sigma[inside] / wanted[inside]).mean()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("adapter", [ImageModule, lambda f: KspaceModule(f, ("kspace",), "kspace")])
def test_what_is_no_network_is_refused(adapter):
    with pytest.raises(InputError, match=r"must be a torch\.nn\.Module, not function"):
        adapter(lambda x: x)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("kind", [torch.complex64, torch.complex128])
def test_networks_of_complex_weights_follow_the_precision_of_the_scan(dtype, kind):
    scan = make_scan()
    scan = replace(scan, kspace=scan.kspace.to(dtype))
    torch.manual_seed(0)
    image = nn.Conv2d(1, 1, 3, padding=1, dtype=kind)
    lines = nn.Conv2d(3, 3, 3, padding=1, dtype=kind)
    for recon in (ImageModule(image, channels="complex"),
                  KspaceModule(lines, ("kspace",), "kspace", pairs=False)):
        assert recon(scan).dtype == (dtype if recon.name == "image_module" else dtype.to_real())
    assert next(image.parameters()).dtype == kind  # the user's own is left alone


def test_kspace_of_whitened_coils_gives_images_in_units_of_the_noise():
    scan, same = make_scan(), nn.Identity()
    white = KspaceModule(same, ("kspace",), "kspace", pairs=False)
    stored = KspaceModule(same, ("kspace",), "kspace", pairs=False, whiten=False)
    assert white.bind(scan).units == NOISE
    assert stored.bind(scan).units == KSPACE


def test_networks_that_answer_in_half_precision():
    scan = make_scan()
    layer = nn.Conv2d(2, 2, 3, padding=1)

    class Half(nn.Module):
        def forward(self, x):
            return layer(x.float()).to(torch.bfloat16)

    image = ImageModule(Half(), channels="pairs")(scan)
    assert image.dtype == scan.kspace.dtype
    network = KspaceModule(Kspace(lambda k: k.to(torch.float16)), ("kspace",), "kspace")
    wanted = KspaceModule(Kspace(lambda k: k), ("kspace",), "kspace")(scan)
    torch.testing.assert_close(network(scan), wanted, rtol=1e-2, atol=1e-2)


def test_networks_of_pairs_are_traced():
    problem = Problem.of(ImageModule(nn.Conv2d(2, 2, 3, padding=1), channels="pairs"), make_scan())
    noise = problem.noise(1, range(2), 3)
    assert problem.linearization.jvp(noise).shape[0] == 2
    assert problem.linearization.strategy == "linearize"
