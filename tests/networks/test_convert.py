"""Published fastMRI state dicts by their exact names and shapes, written out from the papers' code.

The values are random: what is tested is that every weight lands where it belongs.
"""

from __future__ import annotations

import pytest
import torch

from snrecon.errors import InputError
from snrecon.networks.convert import convert, e2e_varnet_from_fastmri, unet_from_fastmri
from snrecon.networks.e2e_varnet import E2EVarNet
from snrecon.networks.store import load_weights, save_weights
from snrecon.networks.unet import Unet

UNET_OF_TWO_CHANNELS_18 = """
down_sample_layers.0.layers.0.weight 18 2 3 3
down_sample_layers.0.layers.4.weight 18 18 3 3
down_sample_layers.1.layers.0.weight 36 18 3 3
down_sample_layers.1.layers.4.weight 36 36 3 3
down_sample_layers.2.layers.0.weight 72 36 3 3
down_sample_layers.2.layers.4.weight 72 72 3 3
down_sample_layers.3.layers.0.weight 144 72 3 3
down_sample_layers.3.layers.4.weight 144 144 3 3
conv.layers.0.weight 288 144 3 3
conv.layers.4.weight 288 288 3 3
up_conv.0.layers.0.weight 144 288 3 3
up_conv.0.layers.4.weight 144 144 3 3
up_conv.1.layers.0.weight 72 144 3 3
up_conv.1.layers.4.weight 72 72 3 3
up_conv.2.layers.0.weight 36 72 3 3
up_conv.2.layers.4.weight 36 36 3 3
up_conv.3.0.layers.0.weight 18 36 3 3
up_conv.3.0.layers.4.weight 18 18 3 3
up_conv.3.1.weight 2 18 1 1
up_conv.3.1.bias 2
up_transpose_conv.0.layers.0.weight 288 144 2 2
up_transpose_conv.1.layers.0.weight 144 72 2 2
up_transpose_conv.2.layers.0.weight 72 36 2 2
up_transpose_conv.3.layers.0.weight 36 18 2 2
"""


def unet_shapes(chans: int = 18, image_channels: int = 2) -> dict[str, tuple[int, ...]]:
    """The list above for another width: its numbers are 18 times a power of two."""
    shapes = {}
    for line in UNET_OF_TWO_CHANNELS_18.split("\n")[1:-1]:
        name, *sizes = line.split()
        wide = [int(n) for n in sizes]
        shapes[name] = tuple(
            n // 18 * chans if n >= 18 else (image_channels if i < 2 and n == 2 else n)
            for i, n in enumerate(wide)
        )
    for i in range(4):  # 2x2 kernels are no image channels
        name = f"up_transpose_conv.{i}.layers.0.weight"
        shapes[name] = (*shapes[name][:2], 2, 2)
    return shapes


def varnet_shapes(unrolls: int, chans: int, sens_chans: int) -> dict[str, tuple[int, ...]]:
    shapes = {f"sens_net.norm_unet.unet.{k}": v for k, v in unet_shapes(sens_chans).items()}
    for i in range(unrolls):
        shapes[f"cascades.{i}.dc_weight"] = (1,)
        shapes |= {f"cascades.{i}.model.unet.{k}": v for k, v in unet_shapes(chans).items()}
    return shapes


def filled(shapes: dict[str, tuple[int, ...]], prefix: str = "") -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {prefix + k: 0.1 * torch.randn(v, generator=rng) for k, v in shapes.items()}


def equal(network: torch.nn.Module, state: dict[str, torch.Tensor], prefix: str = "") -> bool:
    ours = network.state_dict()
    assert set(ours) == {k.removeprefix(prefix) for k in state}
    return all(torch.equal(ours[k.removeprefix(prefix)], v) for k, v in state.items())


def test_the_written_shapes_are_those_of_the_published_networks():
    with torch.device("meta"):
        unet, varnet = Unet(1, 1, 32, 4), E2EVarNet()
    assert {k: tuple(v.shape) for k, v in unet.state_dict().items()} == unet_shapes(32, 1)
    assert {k: tuple(v.shape) for k, v in varnet.state_dict().items()} == varnet_shapes(12, 18, 8)
    assert len(varnet_shapes(12, 18, 8)) == 24 * 13 + 12


@pytest.mark.parametrize("prefix", ["", "unet.", "module.", "module.unet.", "unet.module."])
def test_unet_by_name(prefix):
    state = filled(unet_shapes(3, 1), prefix)
    network = unet_from_fastmri(state)
    assert (network.in_chans, network.out_chans, network.chans, network.pools) == (1, 1, 3, 4)
    assert not network.training
    assert equal(network, state, prefix)


@pytest.mark.parametrize("prefix", ["", "varnet.", "module.", "module.varnet."])
def test_varnet_by_name(prefix):
    state = filled(varnet_shapes(3, 4, 2), prefix)
    network = e2e_varnet_from_fastmri(state)
    assert (network.unrolls, network.chans, network.pools) == (3, 4, 4)
    assert (network.sens_chans, network.sens_pools) == (2, 4)
    assert equal(network, state, prefix)


def test_a_lightning_checkpoint_with_all_that_lies_around_the_network(tmp_path):
    state = filled(varnet_shapes(2, 2, 2), "varnet.")
    extra = {f"varnet.cascades.{i}.zero": torch.zeros(1, 1, 1, 1, 1) for i in range(2)}
    extra |= {"loss.w": torch.ones(1, 1, 7, 7) / 49, "NMSE.quantity": torch.zeros(1)}
    path = tmp_path / "epoch=49.ckpt"
    torch.save({"epoch": 49, "state_dict": state | extra}, path)
    assert equal(convert("e2e_varnet", path), state, "varnet.")


def test_a_published_file_gives_weights_of_this_package(tmp_path):
    path = tmp_path / "knee_state_dict.pt"
    state = filled(unet_shapes(2, 1))
    torch.save(state, path)
    network = convert("unet", path)
    save_weights(network, tmp_path / "knee.safetensors")
    assert equal(load_weights("unet", tmp_path / "knee.safetensors"), state)


def test_every_weight_matters_where_it_landed():
    """Outputs of the converted network are those of the same layers called by hand."""
    from torch.nn import functional

    state = filled(unet_shapes(2, 1))
    network = unet_from_fastmri(state)
    x = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(3))

    def block(y, name):
        for layer in (0, 4):
            y = functional.conv2d(y, state[f"{name}.layers.{layer}.weight"], padding=1)
            y = functional.leaky_relu(functional.instance_norm(y), 0.2)
        return y

    y, kept = x, []
    for i in range(4):
        kept.append(block(y, f"down_sample_layers.{i}"))
        y = functional.avg_pool2d(kept[-1], 2)
    y = block(y, "conv")
    for i in range(4):
        y = functional.conv_transpose2d(y, state[f"up_transpose_conv.{i}.layers.0.weight"], None, 2)
        y = functional.leaky_relu(functional.instance_norm(y), 0.2)
        y = block(torch.cat([y, kept.pop()], 1), "up_conv.3.0" if i == 3 else f"up_conv.{i}")
    y = functional.conv2d(y, state["up_conv.3.1.weight"], state["up_conv.3.1.bias"])
    torch.testing.assert_close(network(x), y, rtol=1e-4, atol=1e-4)


def _without(state, key):
    return {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: _without(s, "up_conv.1.layers.4.weight"), "up_conv.1.layers.4.weight.*missing"),
        (lambda s: _without(s, "up_conv.3.1.weight"), "'up_conv.3.1.weight' is missing"),
        (lambda s: {**s, "attention.weight": torch.ones(1)}, "no weight 'attention.weight'"),
        (lambda s: {**s, "conv.layers.0.weight": torch.ones(3, 3)}, "conv.layers.0.weight.*shape"),
        (lambda s: {**s, "up_conv.3.1.bias": torch.tensor([float("nan")])}, "NaN"),
        (lambda s: {}, "missing"),
        (lambda s: {**s, **{f"down_sample_layers.{i}.x": torch.ones(1) for i in range(9)}}, "9 l"),
    ],
)
def test_foreign_dicts_are_refused_in_a_sentence(change, message):
    with pytest.raises(InputError, match=message):
        unet_from_fastmri(change(filled(unet_shapes(2, 1))))


def test_foreign_files_are_refused_in_a_sentence(tmp_path):
    path = tmp_path / "weights.pt"
    with pytest.raises(InputError, match="no such weights file"):
        convert("unet", path)
    path.write_bytes(b"not torch")
    with pytest.raises(InputError, match="not a complete torch file"):
        convert("unet", path)
    torch.save(filled(unet_shapes(2, 1)), path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="not a complete torch file"):
        convert("unet", path)
    torch.save(Unet(1, 1, 2, 1), path)  # a pickled object would run code
    with pytest.raises(InputError, match="weights alone"):
        convert("unet", path)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="no state dict"):
        convert("unet", path)
    with pytest.raises(InputError, match="only for unet, e2e_varnet and"):
        convert("modl", path)
