"""Every benchmark in turn: ``python -m benchmarks [--quick]``.

Those on real scans need SNRECON_DATA and are left out, saying so, when it is absent.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SIMULATED = ("snr_units", "coverage", "cost", "repeats", "sure", "toy_posterior")
REAL = ("noise_scan", "agreement", "scores")


def main() -> int:
    """Run each benchmark in a process of its own; the exit code is the number that failed."""
    folder = Path(os.environ.get("SNRECON_DATA", "../shared/data"))
    names = list(SIMULATED)
    if folder.is_dir():
        names += REAL
    else:
        print(f"the real scans are not at {folder}: leaving out {', '.join(REAL)}")
    failed = 0
    for name in names:
        command = [sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]]
        failed += subprocess.run(command).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
