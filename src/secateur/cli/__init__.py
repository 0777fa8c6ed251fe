"""The command line: one file per command, with flags read from the signature of the function behind it.

torch and whatever else is slow to load is imported inside the commands.

Exit codes: 0, all that was asked for was reached; 1, a result was made but a budget was missed or failed; 2, refused
or stopped by an error that says what to do; 130, Ctrl-C.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, TextIO, cast

import typer

from secateur import __version__
from secateur._utils import workers
from secateur._utils.disk import is_disk_full
from secateur.errors import DataWarning, MendedWarning, RunError, SecateurError, TrainingWarning

__all__ = ["main"]

COMMANDS = {
    "list": "list_recipes",
    "show": "show",
    "run": "run",
    "prune": "prune",
    "distill": "distill",
    "prune-context": "prune_context",
    "serve-context": "serve_context",
    "train-pruner": "train_pruner",
    "build-pruner": "build_pruner",
    "prune-data": "prune_data",
    "conflicts": "conflicts",
    "study": "study",
    "inspect": "inspect",
    "estimate": "estimate",
    "measure": "measure",
    "report": "report",
    "export": "export",
    "extract": "extract",
    "translate-adapter": "translate_adapter",
}
"""Command -> its module, in the order of `secateur --help`."""
_PRINTED = ("list", "show", "inspect", "estimate")
"""Commands that have done what they were asked for but for the lines that nobody reads any more."""

_INTERRUPTED = "interrupted; the same command resumes where it stopped"
_UNPRINTED = (
    "standard output could not be written, for there is no space left where it goes: send it elsewhere and run the "
    "same command again, which goes on from what stands on the disk"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"] or ["--help"]
    # Set before anything imports them: what libraries would print around our one line.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not debug:
        warnings.simplefilter("ignore")
        workers.quiet_libraries()
    with _watching_output() as output:
        return _run(words, output, debug)


def _run(words: Sequence[str], output: _Output, debug: bool) -> int:
    """Run one command; returns the exit code. All errors end here, in a line."""
    interrupts: list[int] = []
    try:
        with _showing_mended(), _noting_interrupts(interrupts):
            code = typer.main.get_command(_app(words))(args=words, prog_name="secateur", standalone_mode=False)
        if code == 130:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        output.flush()  # or Python would at its end, where nothing tells what is wrong
        return int(code or 0)
    except typer.Exit as stop:
        return int(stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _stop(_INTERRUPTED, 130, debug)
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        output.drop()
        return 0
    except SystemExit as stop:
        closed = getattr(stop.__context__, "errno", None) == errno.EPIPE  # or a training was told to stop, say
        if not closed or not (words[0] in _PRINTED or {"--help", "--version"} & {*words}):
            raise
        output.drop()  # click found it first, and there was nothing left to do but to print
        return 0
    except Exception as error:
        if interrupts:
            return _stop(_INTERRUPTED, 130, debug)
        if output.is_full:
            output.drop()
            return _stop(_UNPRINTED, RunError.exit_code, debug)
        if isinstance(error, SecateurError):
            return _stop(str(error), error.exit_code, debug)
        return _stop(_explain(error), 2, debug)


class _Output:
    """Standard output that notes when what is printed finds no space, whoever takes that for a full disk of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self.is_full = stream, False

    def write(self, text: str) -> int:
        """Write it, and note where there is no space."""
        with self._noting():
            return self._stream.write(text)

    def flush(self) -> None:
        """Write what waits to be written."""
        with self._noting():
            self._stream.flush()

    def drop(self) -> None:
        """Send what still waits nowhere, or Python would try again at its end."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.is_full = is_disk_full(error)
            raise

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextmanager
def _watching_output() -> Iterator[_Output]:
    """Within the block standard output notes when it is full; where there is none (`>&-`), nothing is noted."""
    stream = sys.stdout
    if stream is None:
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            yield _Output(nowhere)
        return
    output = _Output(stream)
    sys.stdout = cast(TextIO, output)
    try:
        yield output
    finally:
        sys.stdout = stream


@contextmanager
def _showing_mended() -> Iterator[None]:
    """Print warnings of what was mended, or left out of data or training, as notes, whatever becomes of others."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", MendedWarning)
        warnings.simplefilter("default", DataWarning)
        warnings.simplefilter("default", TrainingWarning)
        show_other = warnings.showwarning

        def show(
            message: Warning | str, category: type[Warning], filename: str, lineno: int,
            file: TextIO | None = None, line: str | None = None,
        ) -> None:  # fmt: skip
            if issubclass(category, (MendedWarning, DataWarning, TrainingWarning)):
                print(f"note: {' '.join(str(message).split())}", file=sys.stderr)
            else:
                show_other(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


@contextmanager
def _noting_interrupts(interrupts: list[int]) -> Iterator[None]:
    """Note each Ctrl-C: compiled code may turn the KeyboardInterrupt that it raises into an error of its own."""

    def note(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _explain(error: Exception) -> str:
    if hasattr(error, "format_message"):  # the parser's: a wrong flag, a missing argument
        return f"{error.format_message()} (--help shows what there is)"
    if is_disk_full(error):
        return "disk full: free some space and run the same command again"
    if "tensors to be on the same device" in str(error) or "on the same device as the indexed" in str(error):
        return (
            "the network has a tensor that stays behind when it goes to a GPU: let it be a buffer (register_buffer), "
            "or hide the GPU (CUDA_VISIBLE_DEVICES=)"
        )
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}"
    return f"unexpected {type(error).__name__}: {error} (add --debug to see where)"


def _stop(message: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"secateur: {' '.join(message.split())}", file=sys.stderr)
    return code


def _app(words: Sequence[str]) -> typer.Typer:
    # The bare --help stays plain, for speed; the pages of commands are laid out by rich.
    bare = not words or words[0].startswith("-")
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None if bare else "rich",
        help="Make trained things smaller by pruning, win back what was lost by distilling, and prove it.",
        epilog="--debug with any command shows where an error came from.",
    )
    app.callback(invoke_without_command=True)(_root)
    for name, file in COMMANDS.items():
        module = importlib.import_module(f"secateur.cli.{file}")
        # The flags of a command are read only where it is the one that is asked for.
        app.command(name)(module.COMMAND.callback(words[1:] if words[:1] == [name] else None))
    return app


def _root(version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False) -> None:
    if version:
        print(f"secateur {__version__}")
        raise typer.Exit
