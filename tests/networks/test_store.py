"""Weights files: round trip, integrity, damage."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from snrecon.errors import InputError
from snrecon.networks import store
from snrecon.networks.e2e_varnet import E2EVarNet
from snrecon.networks.modl import MoDL
from snrecon.networks.unet import Unet
from snrecon.networks.varnet import VarNet


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(1)
    network = VarNet(2, 3)
    path = tmp_path / "small.safetensors"
    store.save_weights(network, path, {"steps": "7"})
    return network, path


def test_round_trip_is_exact(saved):
    network, path = saved
    loaded = store.load_weights("varnet", path)
    assert (loaded.unrolls, loaded.features) == (2, 3)
    assert not loaded.training
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert [p.name for p in path.parent.iterdir()] == ["small.safetensors"]


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("unet", Unet(1, 1, 2, 3)),
        ("unet", Unet(2, 2, 3, 2, drop=0.1)),
        ("e2e_varnet", E2EVarNet(2, 3, 2, 2, 1)),
        ("modl", MoDL(3, 4, 2, 6, 0)),
        ("modl", MoDL(3, 4, 2, 6, 1)),
    ],
)
def test_every_network_comes_back_with_its_arguments(name, network, tmp_path):
    path = tmp_path / "w.safetensors"
    store.save_weights(network, path)
    loaded = store.load_weights(name, path)
    assert type(loaded) is type(network)
    for argument in store.ARGUMENTS[name]:
        assert getattr(loaded, argument) == getattr(network, argument)
    state = network.state_dict()
    assert set(loaded.state_dict()) == set(state)
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in state.items())
    other = next(n for n in store.NETWORKS if n != name)
    with pytest.raises(InputError, match=f"not weights of this package's {other}"):
        store.load_weights(other, path)


@pytest.mark.parametrize("wrong", [{"pools": 9}, {"pools": 0}, {"chans": 4.0}, {"chans": True}])
def test_arguments_out_of_range_are_refused(wrong, tmp_path):
    path = tmp_path / "w.safetensors"
    arguments = {"in_chans": 1, "out_chans": 1, "chans": 2, "pools": 1, **wrong}
    metadata = {"network": "unet", "arguments": json.dumps(arguments)}
    save_file({"w": torch.ones(1)}, path, metadata=metadata)
    with pytest.raises(InputError, match="header of the weights is damaged"):
        store.load_weights("unet", path)


def test_shipped_weights_are_what_their_card_says():
    assert "brain" in store.shipped_weights("varnet")
    for network in store.NETWORKS:
        for name in store.shipped_weights(network):
            path = store.find_weights(network, name)
            assert store.checksum(path) in path.with_suffix(".md").read_text(encoding="utf-8")
            assert path.stat().st_size < 6e6
            store.load_weights(network, name)


def test_changed_shipped_weights_are_refused(saved, tmp_path, monkeypatch):
    _, path = saved
    monkeypatch.setattr(store, "FOLDER", tmp_path)
    path.rename(tmp_path / "varnet-small.safetensors")
    card = tmp_path / "varnet-small.md"
    card.write_text(f"sha256: `{store.checksum(tmp_path / 'varnet-small.safetensors')}`")
    store.load_weights("varnet", "small")
    card.write_text("sha256: `" + "0" * 64 + "`")
    with pytest.raises(InputError, match="not the ones"):
        store.load_weights("varnet", "small")


def test_unknown_name_lists_what_exists():
    with pytest.raises(InputError, match="known: brain"):
        store.load_weights("varnet", "knee")
    with pytest.raises(InputError, match="no such weights file"):
        store.load_weights("varnet", "missing.safetensors")


def _damaged(path, kind):
    data = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("weights?")
    elif kind == "foreign":
        save_file({"w": torch.ones(3)}, path)
    elif kind == "giant":
        metadata = {"network": "varnet", "arguments": json.dumps({"unrolls": 2, "features": 10**9})}
        save_file({"w": torch.ones(3)}, path, metadata=metadata)
    elif kind == "arguments":
        save_file({"w": torch.ones(3)}, path, metadata={"network": "varnet", "arguments": "[1"})
    elif kind == "shapes":
        metadata = {"network": "varnet", "arguments": json.dumps({"unrolls": 2, "features": 4})}
        save_file({"w": torch.ones(3)}, path, metadata=metadata)
    elif kind == "nan":
        network = VarNet(1, 2)
        torch.nn.init.constant_(network.steps, float("nan"))
        store.save_weights(network, path)


@pytest.mark.parametrize(
    "kind", ["truncated", "empty", "text", "foreign", "giant", "arguments", "shapes", "nan"]
)
def test_damaged_files_are_refused_in_a_sentence(saved, kind):
    _, path = saved
    _damaged(path, kind)
    with pytest.raises(InputError, match=r"small\.safetensors"):
        store.load_weights("varnet", path)
