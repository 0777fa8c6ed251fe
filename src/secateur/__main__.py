"""The command `secateur`, and `python -m secateur`: the command line, which Ctrl-C may stop while it still loads."""

import atexit
import multiprocessing
import os
import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line; returns the exit code, unless Ctrl-C ended it: then the process is gone."""
    try:
        from secateur import cli  # imports typer, which takes a moment
    except KeyboardInterrupt:
        print("secateur: interrupted before anything was done", file=sys.stderr)
        _leave(130)
    code = cli.main()
    if code == 130:
        _leave(code)
    return code


def _leave(code: int) -> None:
    """End at once. An interpreter waits for its threads, and Ctrl-C may have met one that nobody will ever wake."""
    try:
        for child in multiprocessing.active_children():  # one that still starts would look for what is gone then
            child.kill()
            child.join()
        atexit._run_exitfuncs()  # temporary folders
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
