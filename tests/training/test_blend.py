"""Blended weights lie on the line between two trainings."""

from __future__ import annotations

import pytest
import torch

from snrecon.errors import InputError
from snrecon.networks.store import load_weights, save_weights
from snrecon.networks.varnet import VarNet
from snrecon.training.blend import blend, main


@pytest.fixture
def files(tmp_path):
    paths = []
    for seed, features in ((1, 3), (2, 3), (3, 4)):
        torch.manual_seed(seed)
        paths.append(tmp_path / f"{seed}.safetensors")
        save_weights(VarNet(2, features), paths[-1])
    return paths


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_blend_lies_between(files, tmp_path, share):
    blend("varnet", files[0], files[1], share, tmp_path / "out.safetensors")
    one, other, mixed = (load_weights("varnet", path).state_dict()
                         for path in (*files[:2], tmp_path / "out.safetensors"))
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor, (1 - share) * one[name] + share * other[name])


def test_bad_input_is_a_sentence(files, tmp_path):
    out = tmp_path / "out.safetensors"
    with pytest.raises(InputError, match="between 0 and 1"):
        blend("varnet", files[0], files[1], 1.5, out)
    with pytest.raises(InputError, match="different sizes"):
        blend("varnet", files[0], files[2], 0.5, out)
    with pytest.raises(InputError, match=r"none\.safetensors"):
        blend("varnet", files[0], tmp_path / "none.safetensors", 0.5, out)
    with pytest.raises(InputError, match="no network 'vernet'"):
        blend("vernet", files[0], files[1], 0.5, out)
    with pytest.raises(InputError, match="folder does not exist"):
        blend("varnet", files[0], files[1], 0.5, tmp_path / "none" / "out.safetensors")
    assert not out.exists()


def test_the_command_line(files, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.safetensors"
    words = ["blend", "varnet", *map(str, files[:2])]
    monkeypatch.setattr("sys.argv", [*words, "0.5", str(out)])
    main()
    assert out.exists()
    for share, said in (("half", "invalid float"), ("2", "between 0 and 1")):
        monkeypatch.setattr("sys.argv", [*words, share, str(out)])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err
