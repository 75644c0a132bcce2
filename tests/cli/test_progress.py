"""Progress on a terminal and elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from snrecon.cli import progress as module
from snrecon.cli.progress import Progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Progress("varnet") as progress:
        progress(1, None, "first [probe]")
        progress(5, 10, "error 7%")
        progress._bar.refresh()  # the bar draws itself only ten times a second
        progress.step("sense")
        progress(1, 2, "")
    shown = terminal.getvalue()
    assert "5/10" in shown
    assert "error 7%" in shown
    assert "sense" in shown


def test_silence_elsewhere_unless_it_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Progress("varnet") as progress:
        for done in range(50):
            progress(done, 50, "error")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(module, "INTERVAL", -1.0)
    with Progress("varnet") as progress:
        progress(3, 50, "error of sigma 7%")
        progress(4, None, "")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["varnet: 3 of 50 error of sigma 7%", "varnet: 4"]


def test_per_cent_of_what_is_not_counted_in_things(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "INTERVAL", -1.0)
        with Progress("training", percent=True) as progress:
            progress(57, 1000, "step 1, loss 2.000")
            progress(3, None, "step 1")
    assert capsys.readouterr().err.splitlines() == [
        "training: 5 % step 1, loss 2.000", "training: 3 step 1"]
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Progress("training", percent=True) as progress:
        progress(570, 1000, "step 11")
        progress._bar.refresh()
    assert "57%" in terminal.getvalue()
    assert "570" not in terminal.getvalue()
