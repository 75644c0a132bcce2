"""score-MRI's checkpoints by their exact names and shapes; the values are random."""

from __future__ import annotations

import pytest
import torch

from snrecon.errors import InputError
from snrecon.networks.convert import convert
from snrecon.networks.convert_ncsnpp import ncsnpp_from_published


def residual(number: int, before: int, after: int, embedded: int, resized: bool = False) -> dict:
    name = f"module.all_modules.{number}."
    shapes = {
        "GroupNorm_0.weight": (before,), "GroupNorm_0.bias": (before,),
        "Conv_0.weight": (after, before, 3, 3), "Conv_0.bias": (after,),
        "Dense_0.weight": (after, embedded), "Dense_0.bias": (after,),
        "GroupNorm_1.weight": (after,), "GroupNorm_1.bias": (after,),
        "Conv_1.weight": (after, after, 3, 3), "Conv_1.bias": (after,),
    }
    if before != after or resized:
        shapes |= {"Conv_2.weight": (after, before, 1, 1), "Conv_2.bias": (after,)}
    return {name + key: shape for key, shape in shapes.items()}


def published(nf: int, multipliers: tuple[int, ...], blocks: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes as the published configuration makes them; nf = 128, multipliers
    (1, 2, 2, 2) and 4 blocks are those of the fastMRI checkpoint."""
    root, embedded = "module.all_modules.", 4 * nf
    shapes: dict[str, tuple[int, ...]] = {
        "module.sigmas": (2000,), root + "0.W": (nf,),
        root + "1.weight": (embedded, 2 * nf), root + "1.bias": (embedded,),
        root + "2.weight": (embedded, embedded), root + "2.bias": (embedded,),
        root + "3.weight": (nf, 1, 3, 3), root + "3.bias": (nf,),
    }
    number, kept, now, pyramid = 4, [nf], nf, 1
    for level, times in enumerate(multipliers):
        for _ in range(blocks):
            shapes |= residual(number, now, nf * times, embedded)
            now, number = nf * times, number + 1
            kept.append(now)
        if level < len(multipliers) - 1:
            shapes |= residual(number, now, now, embedded, resized=True)
            shapes |= {f"{root}{number + 1}.Conv2d_0.weight": (now, pyramid, 3, 3),
                       f"{root}{number + 1}.Conv2d_0.bias": (now,)}
            pyramid, number = now, number + 2
            kept.append(now)
    shapes |= residual(number, now, now, embedded)
    name = f"{root}{number + 1}."
    shapes |= {name + "GroupNorm_0.weight": (now,), name + "GroupNorm_0.bias": (now,)}
    for part in range(4):
        shapes |= {f"{name}NIN_{part}.W": (now, now), f"{name}NIN_{part}.b": (now,)}
    shapes |= residual(number + 2, now, now, embedded)
    number += 3
    for level in reversed(range(len(multipliers))):
        for _ in range(blocks + 1):
            after = nf * multipliers[level]
            shapes |= residual(number, now + kept.pop(), after, embedded)
            now, number = after, number + 1
        if level:
            shapes |= residual(number, now, now, embedded, resized=True)
            number += 1
    return shapes | {
        f"{root}{number}.weight": (now,), f"{root}{number}.bias": (now,),
        f"{root}{number + 1}.weight": (1, now, 3, 3), f"{root}{number + 1}.bias": (1,)}


def checkpoint(nf: int = 8, multipliers: tuple[int, ...] = (1, 2, 2), blocks: int = 2) -> dict:
    generator = torch.Generator().manual_seed(1)
    shapes = published(nf, multipliers, blocks)
    state = {key: 0.1 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    state["module.sigmas"] = torch.logspace(2, -2, 2000)
    averaged = [value + 1 for key, value in state.items()
                if key not in ("module.sigmas", "module.all_modules.0.W")]
    return {"model": state, "ema": {"decay": 0.999, "num_updates": 3, "shadow_params": averaged},
            "step": 7, "optimizer": {}}


def test_every_weight_of_the_published_size_has_its_place():
    shapes = published(128, (1, 2, 2, 2), 4)
    # 61.4 million, as the paper states.
    assert sum(torch.Size(s).numel() for k, s in shapes.items() if "sigmas" not in k) == 61_433_601
    state = {key: torch.empty(shape).fill_(0.5) for key, shape in shapes.items()}
    state["module.sigmas"] = torch.tensor([378.0, 0.01])
    net = ncsnpp_from_published({"model": state})
    assert (net.features, net.multipliers, net.blocks, net.preconditioned) == (128, 1222, 4, 0)
    assert net.sigma_range == pytest.approx((0.01, 378.0))


def test_the_running_average_is_taken_and_lands_in_order(tmp_path):
    content = checkpoint()
    state = content["model"]
    torch.save(content, tmp_path / "checkpoint_95.pth")
    net = convert("ncsnpp", tmp_path / "checkpoint_95.pth")
    assert net.sigma_range == pytest.approx((0.01, 100.0))
    root = "module.all_modules."
    for ours, theirs in ((net.frequencies, state[root + "0.W"]),
                         (net.embed2.bias, state[root + "2.bias"] + 1),
                         (net.down[0][1].conv2.weight, state[root + "5.Conv_1.weight"] + 1),
                         (net.shrink[0].skip.weight, state[root + "6.Conv_2.weight"] + 1),
                         (net.pyramid[0].conv.weight, state[root + "7.Conv2d_0.weight"] + 1),
                         (net.middle[1].query.weight, state[root + "15.NIN_0.W"].T + 1),
                         (net.last.weight, list(state.values())[-2] + 1)):
        assert torch.equal(ours, theirs)
    plain = ncsnpp_from_published(state)
    assert torch.equal(plain.embed2.bias, state[root + "2.bias"])


@pytest.mark.parametrize("harm", ["missing", "foreign", "order", "average", "nan"])
def test_damaged_checkpoints(harm):
    content = checkpoint()
    state = content["model"]
    if harm == "missing":
        del state["module.all_modules.9.Conv_0.bias"], content["ema"]
    elif harm == "foreign":
        state["module.all_modules.5.NIN_7.W"] = torch.ones(2, 2)
        del content["ema"]
    elif harm == "order":
        state["module.all_modules.4.Conv_1.weight"] = torch.ones(5, 5, 3, 3)
        del content["ema"]
    elif harm == "average":
        content["ema"]["shadow_params"].pop()
    else:
        content["ema"]["shadow_params"][3][0] = torch.nan
    with pytest.raises(InputError):
        ncsnpp_from_published(content)


def test_a_foreign_file():
    with pytest.raises(InputError, match=r"all_modules.0.W"):
        ncsnpp_from_published({"conv.weight": torch.ones(2, 2)})
