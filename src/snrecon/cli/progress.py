"""Progress on standard error: a bar on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

INTERVAL = 10.0
"""Seconds between plain lines."""


class Progress:
    """Callable as ``progress(done, total, message)`` inside a ``with`` block.

    Args:
        title: What is under way.
        percent: Show per cent, for a total that is not a number of things.
    """

    def __init__(self, title: str, *, percent: bool = False) -> None:
        self.title, self.percent = title, percent
        self._bar: Any = None
        self._task: Any = None
        self._last = time.monotonic()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TaskProgressColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn() if self.percent else MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int | None = None, message: str = "") -> None:
        """Show that ``done`` of ``total`` steps are over."""
        if self._bar is not None:
            text = f"{self.title}: {message}" if message else self.title
            self._bar.update(self._task, completed=done, total=total, description=_plain(text))
        elif time.monotonic() - self._last > INTERVAL:
            self._last = time.monotonic()
            far = str(done) if total is None else f"{done} of {total}"
            if self.percent and total:
                far = f"{100 * done // total} %"
            print(f"{self.title}: {far} {message}".rstrip(), file=sys.stderr, flush=True)

    def step(self, title: str) -> None:
        """Begin a new stage under a new title."""
        self.title = title
        if self._bar is not None:
            self._bar.reset(self._task, total=None, description=_plain(title))


def _plain(text: str) -> str:
    """Text without rich's markup."""
    return text.replace("[", "(").replace("]", ")")
