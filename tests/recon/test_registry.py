"""Methods by name."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import snrecon
from snrecon.errors import InputError
from snrecon.recon import PartialFourier, Sense, TotalVariation, WaveletL1, ZeroFilled
from snrecon.recon.registry import available, load


def test_names_give_their_classes() -> None:
    assert isinstance(load("zero_filled"), ZeroFilled)
    assert load("zero_filled:rss").combine == "rss"
    assert load("partial_fourier").kind == "homodyne"
    assert isinstance(load("partial_fourier:pocs", iterations=3), PartialFourier)
    assert isinstance(load("sense", lamda=0.5), Sense)
    assert load("sense", lamda=0.5).lamda == 0.5
    assert isinstance(load("tv"), TotalVariation)
    assert isinstance(load("wavelet", lamda=1), WaveletL1)
    assert load("wavelet:haar").wavelet == "haar"
    assert load("grappa").name == "grappa"
    assert snrecon.recon.load("sense").name == "sense"


@pytest.mark.parametrize("name", available())
def test_the_name_is_the_method(name) -> None:
    from snrecon.networks.store import NETWORKS, shipped_weights

    priors = {"score": "ncsnpp", "langevin": "ncsnpp", "latent": "autoencoder"}
    network = priors.get(name, name)
    if network in NETWORKS and "brain" not in shipped_weights(network):
        with pytest.raises(InputError, match=f"no {network} weights named 'brain'"):
            load(name)
        return
    assert load(name).name == name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sens", {}, "did you mean 'sense'.*zero_filled.*varnet"),
        ("bogus", {}, "methods are zero_filled"),
        ("zero_filled", {"lamda": 0.1}, "no lambda"),
        ("grappa", {"lamda": 0.1}, "no lambda"),
        ("latent", {"lamda": "sure"}, "'sure' is for sense, tv, wavelet"),
        ("score", {"steps": "abc"}, "steps of score must be a whole number, not 'abc'"),
        ("latent", {"restarts": True}, "restarts of latent must be a whole number, not True"),
        ("latent", {"refine": "maybe"}, "true or false or a number, not 'maybe'"),
        ("tv", {"iterations": 2.5}, "iterations of tv must be a whole number, not 2.5"),
        ("grappa", {"kernel": 5}, "kernel of grappa can only be given from Python"),
        ("sense:cg", {}, "no variants"),
        ("zero_filled:", {}, "no variant"),
        ("partial_fourier:half", {}, "homodyne"),
        ("sense", {"iteration": 3}, "no option 'iteration'"),
        ("sense", {"lamda": -1}, "lambda"),
    ],
)
def test_mistakes(name, options, message) -> None:
    with pytest.raises(InputError, match=message):
        load(name, **options)


def test_the_package_imports_nothing_heavy() -> None:
    """``import snrecon.recon`` alone loads no method and no torch."""
    code = (
        "import sys, snrecon, snrecon.recon; dir(snrecon.recon); "
        "assert 'torch' not in sys.modules; assert 'snrecon.recon.sense' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_numbers_of_numpy_are_numbers() -> None:
    assert load("tv", lamda=np.logspace(-2, 0, 5)[0]).lamda == pytest.approx(0.01)
    assert load("sense", solver=np.str_("cg"), iterations=np.int64(3)).iterations == 3
    with pytest.raises(InputError, match="must be"):
        load("tv", iterations=np.float64(2.5))


def test_a_variant_and_an_option_do_not_contradict_each_other() -> None:
    with pytest.raises(InputError, match="'varnet:brain' sets weights already"):
        load("varnet:brain", weights="own.safetensors")


@pytest.mark.parametrize("tolerance", [1.0, float("nan"), -1e-3, 0.0])
def test_a_tolerance_that_no_image_or_every_image_meets(tolerance: float) -> None:
    with pytest.raises(InputError, match="tolerance of sense"):
        load("sense", solver="cg", tolerance=tolerance)
