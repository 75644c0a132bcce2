"""How many samples are drawn at once."""

import pytest
import torch

from snrecon.noise import memory
from snrecon.noise.memory import chunk_size, peak_bytes

CPU = torch.device("cpu")


@pytest.fixture
def plenty(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 2**40)


def test_what_is_held_at_once_is_counted():
    def run():
        first = torch.ones(1000)
        second = first * 2
        del first
        return second + 1

    result, peak = peak_bytes(run)
    assert torch.equal(result, torch.full((1000,), 3.0))
    assert peak == 8000  # two of the three arrays, never all


@pytest.mark.parametrize(
    ("size", "expected"), [(1, 8), (2**22, 8), (2**23, 4), (2**24, 2), (2**25, 1), (2**30, 1)]
)
def test_a_cpu_holds_about_what_its_caches_do(plenty, size, expected):
    assert chunk_size(size, CPU) == expected


@pytest.mark.parametrize(("at_once", "expected"), [(16, 16), (15, 8), (1, 1)])
def test_a_reconstruction_may_ask_for_more(plenty, at_once, expected):
    assert chunk_size(2**30, CPU, at_once) == expected


def test_memory_at_hand_is_the_limit(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 2**30)
    assert chunk_size(2**26, CPU, 16) == 4  # a quarter of what there is


def test_a_gpu_takes_many(plenty):
    assert chunk_size(2**20, torch.device("cuda")) == memory.GPU_CAP
