"""The command line."""

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command as `app.main` does; an interrupt at any moment ends it with exit code 130."""
    try:
        from leuko.cli.app import main as run

        run(arguments)
    except KeyboardInterrupt:
        sys.exit(130)
