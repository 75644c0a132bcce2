"""Somebody else's program as a reconstruction: k-space in, image out, as BART files."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from snrecon.data import Scan
from snrecon.errors import InputError
from snrecon.io.cfl import read_cfl, to_bart, write_cfl
from snrecon.recon.base import Bound, Reconstructor
from snrecon.recon.forward_model import forward_model


class Command(Reconstructor):
    """An external program, for pseudo-replicas only.

    Every ``{kspace}`` of the command is replaced by the name of a cfl file with k-space
    ``(kx, ky, kz, coil)`` in the scan's own coil basis and units, ``{maps}`` by one with coil maps
    in the same basis, ``{image}`` by the name the program has to write its image to. It runs in a
    temporary folder, without a shell; names of files with a ``.`` or ``/`` that are there, relative
    to the folder in which this object was made, are made absolute for it.

    Args:
        command: For instance ``"bart pics -w1 {kspace} {maps} {image}"``. A program that rescales
            by its data has to be told not to (``-w1``), or its noise is of a rescaled image.
        timeout: Seconds that one run may take; None for no limit.

    Raises:
        InputError: if ``{kspace}`` or ``{image}`` is missing, quotes do not match, or the program
            is not found.
        RuntimeError: when run, if the program fails or writes no usable image.
    """

    name = "command"

    def __init__(self, command: str, timeout: float | None = None) -> None:
        try:
            self.words = [_found(word) for word in shlex.split(command)]
        except ValueError as error:
            raise InputError(f"the command {command!r} cannot be read ({error}).") from error
        for place in ("{kspace}", "{image}"):
            if not any(place in word for word in self.words):
                raise InputError(
                    f"the command {command!r} has no {place}; it needs {{kspace}} and {{image}} "
                    "(and {maps} if it takes coil maps)."
                )
        self.command, self.timeout = command, timeout

    def bind(self, scan: Scan, generator: torch.Generator | None = None) -> Bound:
        """k-space ``(coil, *grid)`` to the program's image ``(*grid)``, one at a time."""
        maps = None
        frozen: tuple[str, ...] = ()
        source = "none"
        if any("{maps}" in word for word in self.words):
            model = forward_model(scan)
            maps = scan.maps
            if maps is None:  # estimated in the whitened basis; the program works in the scan's
                inverse = torch.linalg.inv(model.whitening.to(torch.complex128)).to(model.maps)
                maps = torch.einsum("ab,b...->a...", inverse, model.maps)
            frozen, source = model.frozen, model.maps_source
        grid = scan.grid

        def reconstruct(kspace: Tensor) -> Tensor:
            return self._run(kspace, maps, grid)

        return Bound(
            reconstruct,
            self.command,
            frozen=frozen,
            batched=False,
            differentiable=False,
            details={"maps": source},
        )

    def _run(self, kspace: Tensor, maps: Tensor | None, grid: tuple[int, ...]) -> Tensor:
        with tempfile.TemporaryDirectory(prefix="snrecon-") as folder:
            names = {key: str(Path(folder) / key) for key in ("kspace", "maps", "image")}
            write_cfl(names["kspace"], to_bart(kspace, coils=True))
            if maps is not None:
                write_cfl(names["maps"], to_bart(maps, coils=True))
            words = self.words
            for key, name in names.items():
                words = [word.replace("{" + key + "}", name) for word in words]
            try:
                done = subprocess.run(
                    words,
                    cwd=folder,
                    capture_output=True,
                    text=True,
                    errors="replace",
                    stdin=subprocess.DEVNULL,
                    timeout=self.timeout,
                )
            except FileNotFoundError as error:
                raise InputError(f"the program {words[0]!r} was not found.") from error
            except PermissionError as error:
                raise InputError(f"the program {words[0]!r} may not be run.") from error
            except subprocess.TimeoutExpired as error:
                raise RuntimeError(
                    f"the command {self.command!r} took longer than {self.timeout} seconds."
                ) from error
            if done.returncode != 0:
                lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
                said = lines[-1].strip() if lines else "no message"
                raise RuntimeError(
                    f"the command {self.command!r} failed with exit code {done.returncode}: {said}"
                )
            if not Path(names["image"] + ".cfl").is_file():
                raise RuntimeError(f"the command {self.command!r} wrote no image to {{image}}.")
            values = np.ascontiguousarray(read_cfl(names["image"]).transpose().squeeze())
        image = torch.from_numpy(values)
        if tuple(image.shape) != tuple(n for n in grid if n != 1):
            raise RuntimeError(
                f"the command {self.command!r} wrote an image of shape {tuple(image.shape)}, but "
                f"{grid} is needed."
            )
        return image.reshape(grid).to(kspace)


def _found(word: str) -> str:
    """A word of the command, absolute if it names a file from here."""
    named = "." in word or "/" in word
    return str(Path(word).absolute()) if named and Path(word).is_file() else word
