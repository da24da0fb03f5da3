"""Standard output and error that take any text: a failure to print never ends a command."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from leuko.io.provenance import DONE_WITH_WARNINGS

READER_LEFT = (errno.EPIPE, errno.EINVAL)  # as in `leuko ... | head -1`; the latter on Windows


class Printable(io.TextIOBase):
    """A text stream that writes into another one and never raises.

    Characters outside the encoding are escaped (`\\u7ed3`). Once a write has failed, `failure`
    holds the error and all further text is dropped, as it is where there is no stream (None).
    """

    def __init__(self, stream: TextIO | None) -> None:
        # An open null device also keeps files from taking the descriptor of a closed stream.
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
        """Flush; this stream is not used any more."""
        self.flush()
        self._null.close()

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self.failure = error
            with suppress(OSError, ValueError):
                # What is still buffered is flushed when Python ends, and must not fail again.
                os.dup2(self._null.fileno(), self._stream.fileno())
            self._stream = self._null


@contextmanager
def printable() -> Iterator[None]:
    """Make standard output and error `Printable`.

    A command that succeeds but whose output is lost, on a full disk for example, says so and ends
    with `DONE_WITH_WARNINGS`. A reader that closes the pipe early is no failure.
    """
    before = sys.stdout, sys.stderr
    out, error = (Printable(stream) for stream in before)
    sys.stdout, sys.stderr = out, error
    try:
        yield
    except SystemExit as end:
        out.flush()
        if end.code or out.failure is None or getattr(out.failure, "errno", 0) in READER_LEFT:
            raise
        error.write(f"warning: standard output could not be written: {out.failure}\n")
        raise SystemExit(DONE_WITH_WARNINGS) from None
    finally:
        sys.stdout, sys.stderr = before
        out.release()
        error.release()
