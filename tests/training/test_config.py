"""Training configurations: what is accepted, and the sentence for what is not."""

from __future__ import annotations

from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import get_origin, get_type_hints

import pytest

from snrecon.errors import InputError
from snrecon.networks.store import ARGUMENTS, LIMIT, LIMITS
from snrecon.training.config import (
    PRIORS,
    Config,
    DataConfig,
    NetworkConfig,
    ReconstructionConfig,
    SimulationConfig,
    TrainerConfig,
)
from snrecon.training.config_check import check
from snrecon.training.config_file import load_config
from snrecon.training.loop import step_generator

GOOD = """
scheme = "supervised"
[data]
images = ["a.npz:x"]
validation = []
[simulation]
accelerations = [2, 4.5]
[trainer]
max_minutes = 3
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def test_values_and_defaults(tmp_path):
    config = load_config(written(tmp_path, GOOD))
    assert config.simulation.accelerations == [2.0, 4.5]
    assert config.trainer.max_minutes == 3.0
    assert config.network.name == "varnet"


def test_the_shipped_configuration_is_valid():
    config = load_config(Path(__file__).parents[2] / "configs" / "varnet-brain.toml")
    assert config.trainer.max_minutes <= 60
    tests = ("pulseq", "mripy", "cloudmr", "sigpy", "cds")
    entries = [*config.data.images, *config.data.validation]
    assert not any(name in entry for name in tests for entry in entries)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("max_minutes", "max_minuts", "did you mean trainer.max_minutes"),
        ("[simulation]", "[simulaton]", "did you mean simulation"),
        ('scheme = "supervised"', 'scheme = "magic"', "scheme = 'magic' is not known"),
        ("[2, 4.5]", "[]", "accelerations is empty"),
        ("[2, 4.5]", '["two"]', "accelerations must be a number"),
        ("[2, 4.5]", "[0.5]", "at least 1"),
        ("max_minutes = 3", "max_minutes = true", "max_minutes must be a number"),
        ("max_minutes = 3", "max_minutes = 0", "max_minutes or trainer.max_steps"),
        ("max_minutes = 3", "batch = 2.5", "batch must be a whole number"),
        ("max_minutes = 3", "batch = 0", "batch must be positive"),
        ("max_minutes = 3", 'precision = "int8"', "choose auto, float32"),
        ("validation = []", "", "data.validation is missing"),
        ('scheme = "supervised"', 'scheme = "vortex"\nconsistency.labelled = 0',
         "labelled and consistency.balance must be above 0: vortex"),
        ('images = ["a.npz:x"]', 'images = "a.npz:x"', "images must be a list"),
        ("validation = []", "validation = []\nvoxel_sizes = {a = 0}",
         r"data\.voxel_sizes\.a must be positive, but it is 0"),
        ("[trainer]", "[trainer", "not valid TOML"),
        ("[trainer]", "[network]\nunrolls = 2.0\n[trainer]",
         "toml: network.unrolls must be a whole number, not 2.0"),
        ("[trainer]", '[network]\nunrolls = "six"\n[trainer]',
         "toml: network.unrolls must be a whole number, not 'six'"),
        ("[trainer]", "[network.settings]\nunrolls = 2\n[trainer]",
         "toml: network.settings must be a whole number"),
    ],
)
def test_errors_say_what_is_wrong(tmp_path, old, new, sentence):
    assert old in GOOD
    with pytest.raises(InputError, match=sentence.replace("(", r"\(")) as caught:
        load_config(written(tmp_path, GOOD.replace(old, new)))
    assert "run.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("network", ARGUMENTS)
def test_no_network_is_trained_that_could_not_be_read(network):
    """Every argument up to the limit of who reads the weights, and not one more."""
    scheme = {name: scheme for scheme, name in PRIORS.items()}.get(network, "supervised")
    config = Config(DataConfig(["a"], []), scheme=scheme)
    if network == "noise_predictor":
        config = replace(config, scheme=network, reconstruction=ReconstructionConfig("sense"))
    for key in ARGUMENTS[network]:
        if key in ("in_chans", "out_chans"):  # of which only 1 and 2 are known
            continue
        largest = LIMITS.get(key, LIMIT)
        check(replace(config, network=NetworkConfig(network, {key: largest})))
        sentence = rf"network\.{key} must be at most {largest}, but it is {largest + 1}\."
        with pytest.raises(InputError, match=sentence):
            check(replace(config, network=NetworkConfig(network, {key: largest + 1})))
        for value in (2.5, "2", True):
            with pytest.raises(InputError, match=rf"network\.{key} must be a whole number"):
                check(replace(config, network=NetworkConfig(network, {key: value})))


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_every_number_must_be_finite(tmp_path, number):
    count = 0
    for table, kind in get_type_hints(Config).items():
        for item, hint in get_type_hints(kind).items() if is_dataclass(kind) else ():
            if "float" not in str(hint):
                continue
            value = {"list": f"[2.0, {number}]", "dict": f"{{ a = {number} }}"}.get(
                getattr(get_origin(hint), "__name__", ""), number)
            text = "" if table == "data" else '[data]\nimages = ["a"]\nvalidation = []\n'
            text += f"[{table}]\n{item} = {value}\n"
            if table == "data":
                text += 'images = ["a"]\nvalidation = []\n'
            with pytest.raises(InputError, match=rf"{table}\.{item}.* must be a finite number"):
                load_config(written(tmp_path, text))
            count += 1
    assert count > 15
    config = Config(DataConfig(["a"], []), trainer=TrainerConfig(learning_rate=float(number)))
    with pytest.raises(InputError, match=r"trainer\.learning_rate must be a finite number"):
        check(config)


@pytest.mark.parametrize(
    ("table", "line", "sentence"),
    [
        ("trainer", "workers = -1", "trainer.workers must not be negative, but it is -1"),
        ("trainer", "threads = -1", "trainer.threads must not be negative, but it is -1"),
        ("trainer", "warmup = -5", "trainer.warmup must not be negative, but it is -5"),
        ("trainer", "weight_decay = -1", "trainer.weight_decay must not be negative"),
        ("trainer", "ema = 1.5", "trainer.ema must lie between 0 and 1"),
        ("trainer", "ema = -1", "trainer.ema must lie between 0 and 1"),
        ("trainer", "seed = -1", "trainer.seed must lie between 0 and 4294967295, but it is -1"),
        ("trainer", "seed = 1000000000000000000", "trainer.seed must lie between 0 and 42949"),
        ("data", "columns = -3", "data.columns must not be negative, but it is -3"),
        ("data", "first_slice = { a = -3 }", "data.first_slice.a must not be negative"),
        ("data", "voxel_sizes = { a = -1 }", "data.voxel_sizes.a must be positive"),
        ("data", "voxel_sizes = { a = 0 }", "data.voxel_sizes.a must be positive"),
        ("simulation", "map_error = -1", "simulation.map_error must not be negative"),
        ("simulation", "calibration = [0.5, 2]", "simulation.calibration must be shares of at m"),
        ("simulation", "grids = [[100000, 16]]", "simulation.grids must be pairs (ky, kx) of 16"),
        ("simulation", "pool = 100000000", "simulation.pool = 100000000 images of the size of"),
        ("output", 'name = " "', "output.name must be a file name without folder"),
        ("output", 'name = "a/b"', "output.name must be a file name without folder"),
        ("output", f'name = "{201 * "a"}"', "output.name must be a file name without folder"),
    ],
)
def test_values_out_of_range_are_named(tmp_path, table, line, sentence):
    text = f"[{table}]" if f"[{table}]" in GOOD else "[trainer]"
    new = f"{text}\n{line}" if text == f"[{table}]" else f"[{table}]\n{line}\n{text}"
    with pytest.raises(InputError) as caught:
        load_config(written(tmp_path, GOOD.replace(text, new)))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_ends_of_ranges_are_good(tmp_path):
    trainer = TrainerConfig(workers=0, threads=0, warmup=0, weight_decay=0.0, ema=1.0,
                            seed=2**32 - 1, curvature=0.0)
    data = DataConfig(["a"], [], columns=0, first_slice={"a": 0}, voxel_sizes={"a": 0.1})
    simulation = SimulationConfig(map_error=0.0, calibration=[0.5, 1.0])
    check(Config(data, simulation=simulation, trainer=trainer))
    # The largest seed with the largest number of steps is still a seed.
    step_generator(trainer.seed, 10**12)


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_config(tmp_path / "absent.toml")
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="not a text file"):
        load_config(path)
