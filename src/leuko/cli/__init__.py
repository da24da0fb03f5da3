"""The command line."""

import signal
import sys
from collections.abc import Sequence

INTERRUPTED = 130  # exit code, as of shells

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command as `app.main` does; interrupts at any moment end it with exit code 130."""
    try:
        from leuko.cli.app import main as run

        run(arguments)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:
            raise
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of an impatient user
        sys.exit(INTERRUPTED)
