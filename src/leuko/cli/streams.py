"""Standard output and error that accept any text, so that a failure to print ends no command; the
present stage on a terminal, and what an interrupt prints."""

import errno
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import typer

from leuko.io.provenance import DONE_WITH_WARNINGS

STAGE_WIDTH = 24  # columns
CLOSED_PIPE = (errno.EPIPE, errno.EINVAL)  # as in `leuko ... | head -1`; EINVAL on Windows


class Printable(io.TextIOBase):
    """A text stream that writes to another stream and never raises.

    Characters outside the encoding are escaped (`\\u7ed3`). After a failed write, `failure` is the
    error and all further text is discarded. Without a stream (None), all text is discarded.
    """

    def __init__(self, stream: TextIO | None) -> None:
        # While the null device is open, no file gets the descriptor of a closed stream.
        self._null = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115, closed by release
        self._stream = self._null if stream is None else stream
        self.failure: OSError | ValueError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding or "utf-8"

    def write(self, text: str) -> int:
        with self._noted():
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                escaped = text.encode(self.encoding, "backslashreplace")
                self._stream.write(escaped.decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        with self._noted():
            self._stream.flush()

    def isatty(self) -> bool:
        return not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def release(self) -> None:
        """Flush this stream, which must not be used afterwards."""
        self.flush()
        self._null.close()

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self.failure = error
            with suppress(OSError, ValueError):
                # Python flushes the buffered text when it exits; that must not fail again.
                os.dup2(self._null.fileno(), self._stream.fileno())
            self._stream = self._null


@contextmanager
def printable() -> Iterator[None]:
    """Make standard output and error `Printable`.

    If a command succeeds but its output is lost, for example on a full disk, it prints a warning
    and exits with `DONE_WITH_WARNINGS`. A reader that closes the pipe early is not a failure.
    """
    before = sys.stdout, sys.stderr
    out, error = (Printable(stream) for stream in before)
    sys.stdout, sys.stderr = out, error
    try:
        yield
    except SystemExit as end:
        out.flush()
        if end.code or out.failure is None or getattr(out.failure, "errno", 0) in CLOSED_PIPE:
            raise
        error.write(f"warning: standard output could not be written: {out.failure}\n")
        raise SystemExit(DONE_WITH_WARNINGS) from None
    finally:
        sys.stdout, sys.stderr = before
        out.release()
        error.release()


class StageLine(logging.Handler):
    """Shows the present stage of the work in a line of a terminal, which any message replaces."""

    def emit(self, record: logging.LogRecord) -> None:
        self.show(getattr(record, "stage", ""))

    def show(self, stage: str) -> None:
        """Replace the line; an empty text clears it."""
        text = f"{stage} ..." if stage else ""
        print(f"\r{text:<{STAGE_WIDTH}}", end="" if stage else "\r", file=sys.stderr, flush=True)


@contextmanager
def stages_shown() -> Iterator[None]:
    """Show the stages of a `Stopwatch` on standard error if it is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    logger, line = logging.getLogger("leuko"), StageLine()
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.handlers.insert(0, line)  # it clears its line before a message is printed
    try:
        yield
    finally:
        line.show("")
        logger.removeHandler(line)
        logger.setLevel(level)


@contextmanager
def interruptible(said: str) -> Iterator[None]:
    """Ctrl-C prints a line and ends the command with exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        print(said, file=sys.stderr)
        raise typer.Exit(130) from None
