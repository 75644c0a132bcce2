"""Damage valid files at random and watch a reader: it must read them or refuse them politely.

The readers run in a child process, so that a crash or a hang of a C library is an outcome like any
other. A test calls :func:`fuzz`; the child is this file run as a script.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

HANG_SECONDS = 10.0
"""A read that takes longer ends the child process."""
MEMORY_BYTES = 4 * 2**30
"""Address space that reading may add to that of the libraries."""
_INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)


@dataclass(frozen=True)
class Job:
    """One reader and a valid file of its format."""

    reader: str
    """``package.module:function``."""
    file: str
    """Name of the file handed to the reader."""
    mutate: tuple[str, ...] = ()
    """Files of which one is damaged each time; by default ``file``."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the reader."""
    count: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What happened to all mutations of one job."""

    accepted: int
    """Still read as a valid object."""
    refused: Counter[str]
    """InputError by the first words of the sentence after the file name."""
    failures: list[str]
    """Anything else: the mutation's number and what was raised."""
    slowest: float
    """Seconds."""
    memory_mib: float
    """Growth of the peak memory."""


def mutate(data: bytes, seed: int) -> bytes:
    """One damaged copy: flipped, overwritten, cut, doubled, inserted, removed or moved bytes."""
    rng = random.Random(seed)
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        size = len(out)
        if size == 0:
            break
        # Headers lie at the ends; damage there reaches deeper than in the numbers between.
        near = rng.choice((size, size, min(size, 128), min(size, 1024)))
        at = rng.randrange(near)
        if rng.random() < 0.25:
            at = size - 1 - at
        length = rng.randint(1, max(1, min(64, size - at)))
        piece = bytes(out[at : at + length])
        kind = rng.randrange(9)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            for _ in range(rng.randint(1, 8)):
                out[min(size - 1, at + rng.randrange(16))] = rng.randrange(256)
        elif kind == 2:
            width = rng.choice((1, 2, 4, 8))
            value = rng.choice(_INTERESTING) % 256**width
            out[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))
        elif kind == 3:
            del out[at:]
        elif kind == 4:
            out[at:at] = piece * rng.randint(1, 4)
        elif kind == 5:
            out[at:at] = rng.randbytes(length)
        elif kind == 6:
            del out[at : at + length]
        elif kind == 7:
            to = rng.randrange(size)
            out[to : to + length] = piece
        else:
            out[at : at + length] = bytes(length)
    return bytes(out)


def fuzz(jobs: list[Job], timeout: float = 500.0) -> list[Outcome]:
    """Run all jobs in a child process.

    A crash, a hang and a shortage of memory fail with the seed of the mutation that did it.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.jsonl"
        child = subprocess.run(
            [sys.executable, __file__, str(report), json.dumps([asdict(job) for job in jobs])],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        lines = report.read_text().splitlines() if report.exists() else []
    assert child.returncode == 0, (
        f"the reader ended with {child.returncode} after {lines[-1:]}:\n{child.stderr[-4000:]}"
    )
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return [Outcome(**{**f, "refused": Counter(f["refused"])}) for f in found]


def assert_survived(jobs: list[Job], least_refused: float = 0.3) -> list[Outcome]:
    """Assert that every mutation was read or refused, fast and within memory."""
    outcomes = fuzz(jobs)
    assert len(outcomes) == len(jobs)
    for job, outcome in zip(jobs, outcomes):
        assert not outcome.failures, (
            f"{job.file}: {len(outcome.failures)} failures: {outcome.failures[:5]}"
        )
        refused = sum(outcome.refused.values())
        assert outcome.accepted + refused == job.count
        # A reader that checks nothing would accept everything.
        assert refused >= least_refused * job.count, (job.file, outcome)
        assert outcome.slowest < HANG_SECONDS
        assert outcome.memory_mib < 512, (job.file, outcome)
    return outcomes


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _run(job: Job, report: Any) -> dict[str, Any]:
    from snrecon.errors import InputError, SnreconWarning

    module, _, function = job.reader.partition(":")
    read = getattr(import_module(module), function)
    source = Path(job.file)
    names = [Path(name) for name in job.mutate or (job.file,)]
    valid = {name: name.read_bytes() for name in names}
    accepted, slowest, failures = 0, 0.0, []
    refused: Counter[str] = Counter()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        target = Path(folder) / source.name
        for name, data in valid.items():
            (Path(folder) / name.name).write_bytes(data)
        read(target, **job.options)  # the valid file is accepted
        before = _peak_mib()
        for number in range(job.count):
            seed = job.seed * 1_000_003 + number
            name = names[number % len(names)]
            damaged = Path(folder) / name.name
            damaged.write_bytes(mutate(valid[name], seed))
            report.write(f"{source.name} {name.name} seed {seed}\n")
            report.flush()
            signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)  # ends the process, also within C
            start = time.perf_counter()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    warnings.simplefilter("ignore", SnreconWarning)
                    read(target, **job.options)
                accepted += 1
            except InputError as error:
                text = str(error)
                if "\n" in text or folder not in text:
                    failures.append(f"seed {seed}: not one sentence naming the file: {text!r}")
                refused[" ".join(text.partition(": ")[2].split()[:4])] += 1
            except BaseException as error:
                failures.append(f"seed {seed}: {type(error).__name__}: {error}")
            slowest = max(slowest, time.perf_counter() - start)
            signal.setitimer(signal.ITIMER_REAL, 0)
            if len(names) > 1:
                damaged.write_bytes(valid[name])
    return {
        "accepted": accepted,
        "refused": dict(refused),
        "failures": failures,
        "slowest": slowest,
        "memory_mib": _peak_mib() - before,
    }


def _main(report_path: str, jobs: str) -> None:
    import torch

    torch.set_num_threads(1)
    import_module("snrecon.io")
    with contextlib.suppress(ValueError, OSError):  # not on every platform
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)
    with open(report_path, "w", encoding="utf-8") as report:
        for job in json.loads(jobs):
            outcome = _run(Job(**job), report)
            report.write(json.dumps(outcome) + "\n")
            report.flush()


if __name__ == "__main__":
    faulthandler.enable()
    _main(*sys.argv[1:])
