"""The command `secateur`, and `python -m secateur`: the command line, which Ctrl-C may stop while it still loads."""

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line; returns the exit code."""
    try:
        from secateur import cli  # imports typer, which takes a moment
    except KeyboardInterrupt:
        print("secateur: interrupted before anything was done", file=sys.stderr)
        return 130
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
