"""Entry point of the command line: dispatch, exit codes, one sentence per error."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snrecon import __version__
from snrecon.cli import (
    decompose,
    demo,
    evaluate,
    info,
    merge,
    noise,
    posterior,
    prepare,
    recon,
    sure,
    train,
)
from snrecon.cli.options import Parser
from snrecon.errors import InputError

COMMANDS = (
    demo, info, recon, noise, posterior, decompose, sure, merge, evaluate, prepare, train
)
OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def parser() -> Parser:
    """The whole command line."""
    top = Parser(
        prog="snrecon",
        description="MRI reconstructions, each with a trustworthy voxel-wise map of its noise.",
    )
    top.add_argument("--version", action="version", version=f"snrecon {__version__}")
    commands = top.add_subparsers(title="commands", dest="command_name", metavar="command")
    for command in COMMANDS:
        command.add(commands)
    return top


def _parsed(words: Sequence[str]) -> Any:
    """The options; complaints come from the command that they were given to."""
    top = parser()
    args, unknown = top.parse_known_args(words)
    if unknown:
        getattr(args, "parser", top).error(f"unrecognized arguments: {' '.join(unknown)}")
    if args.command_name is None:
        names = [command.__name__.rpartition(".")[2] for command in COMMANDS]
        top.error(f"give a command: {', '.join(names)}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 when it worked, 1 when the computation failed, 2 for bad input, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    args = None
    try:
        with warnings.catch_warnings():
            _plain_warnings(debug)
            args = _parsed(words)
            args.run(args)
            sys.stdout.flush()
        return OK
    except SystemExit as exit_:  # --help and --version
        return exit_.code if isinstance(exit_.code, int) else OK
    except InputError as error:
        return _fail(BAD_INPUT, str(error), debug)
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, _how_to_resume(args), debug)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except MemoryError:
        return _fail(
            FAILED, "the computation ran out of memory; try a smaller scan or slice.", debug
        )
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = reason if len(reason) <= 300 else reason[:297] + "..."
        return _fail(FAILED, f"the computation failed: {reason} (--debug shows where).", debug)


def _fail(code: int, sentence: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    return code


def _how_to_resume(args: Any) -> str:
    if (kept := getattr(args, "interrupted", None)) is not None:
        return f"interrupted; {kept}"
    if hasattr(args, "resume"):
        return "interrupted; with --resume training goes on from the last checkpoint, if any."
    if not hasattr(args, "state"):
        return "interrupted; run the same command again."
    state: Path | None = args.state
    if state is None:
        return "interrupted; with --state FILE the run can be continued where it stopped."
    if not state.is_file():
        return "interrupted before anything was saved; run the same command again."
    return f"interrupted; the work so far is in {state}: run the same command again to continue."


def _plain_warnings(debug: bool) -> None:
    """SnreconWarning as one line on standard error; others only under ``--debug``."""
    from snrecon.errors import SnreconWarning

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)

    if not debug:
        warnings.simplefilter("ignore")
    warnings.simplefilter("always", SnreconWarning)
    warnings.showwarning = show


if __name__ == "__main__":
    raise SystemExit(main())
