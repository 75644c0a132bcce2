"""Write beside, then rename: an output appears whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from snrecon.errors import InputError
from snrecon.io.limits import reason


class Staging:
    """Temporary names in the folder of the outputs; made by :func:`staged`."""

    def __init__(self) -> None:
        self._token = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.pairs: list[tuple[Path, Path]] = []

    def path(self, final: str | Path) -> Path:
        """Where to write what will become ``final``; keeps the ending, which some writers need.

        Raises:
            InputError: if the folder does not exist or the name belongs to a folder.
        """
        final = Path(final)
        try:
            if not final.parent.is_dir():
                raise InputError(f"{final}: there is no folder {final.parent} to write to.")
            if final.is_dir():
                raise InputError(f"{final}: this is a folder; give a file name.")
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{final}: cannot be written ({reason(error)}).") from error
        temporary = final.with_name(f".{self._token}-{final.name}")
        self.pairs.append((temporary, final))
        return temporary


@contextmanager
def staged() -> Iterator[Staging]:
    """Rename all temporary files of the block to their final names when it ends well.

    Otherwise they are removed, and so are those already renamed that replaced nothing.

    Raises:
        InputError: if a file cannot be written or renamed.
    """
    staging = Staging()
    appeared: list[Path] = []
    try:
        yield staging
        for temporary, final in staging.pairs:
            new = not final.exists()
            os.replace(temporary, final)
            if new:
                appeared.append(final)
    except BaseException as error:
        for path in [temporary for temporary, _ in staging.pairs] + appeared:
            with suppress(OSError):
                path.unlink()
        if isinstance(error, OSError) and not isinstance(error, InputError):
            name = staging.pairs[-1][1] if staging.pairs else "the output"
            raise InputError(f"{name}: cannot be written ({reason(error)}).") from error
        raise


@contextmanager
def made_folder(folder: str | Path) -> Iterator[Path]:
    """Make a folder, with its parents, for what the block writes into it.

    Where the block fails, those that were made and are still empty are removed again.

    Raises:
        InputError: if the folder cannot be made.
    """
    folder = Path(folder)
    try:
        fresh = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: this folder cannot be made ({reason(error)}).") from error
    try:
        yield folder
    except BaseException:
        with suppress(OSError):  # the first that holds something, and so do its parents
            for path in fresh:
                path.rmdir()
        raise
