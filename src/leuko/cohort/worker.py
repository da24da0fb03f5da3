"""Run a piece of work in a process of its own, with a memory limit, a time limit and a log.

If the process crashes, hangs or needs too much memory, the caller gets the reason in one line. The
process always ends when its parent ends.
"""

import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LOOK_SECONDS = 0.05  # between two checks of its memory
GRACE_SECONDS = 5.0  # for the process to log where it hangs, and to end
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

IS_WINDOWS = os.name == "nt"

_running: set["subprocess.Popen[bytes]"] = set()
_stopping = threading.Event()


LOGS = "logs"  # in the output folder of a cohort: what each process said, and why it failed


@dataclass(frozen=True)
class Limits:
    """Limits of the process."""

    memory_gb: float  # 1e9 bytes, resident
    seconds: float
    threads: int


@dataclass(frozen=True)
class Outcome:
    """How the process ended."""

    reason: str | None  # why it failed, in one line; None: it succeeded
    seconds: float
    peak_gb: float  # largest resident memory observed, 1e9 bytes


def failures(logs: Path) -> dict[str, str]:
    """Why tasks failed, by their names in order, from the files in a folder of logs."""
    found = {}
    for path in sorted(logs.glob("*.failed")):
        with suppress(FileNotFoundError):  # another run may have done it just now
            found[path.stem] = path.read_text(encoding="utf-8").strip()
    return found


def run(arguments: Sequence[str], task: str, log: Path, limits: Limits) -> Outcome:
    """Run Python with `arguments`, send it `task` (one line, see `receive`) and log its output.

    Raises OSError if the log cannot be written or the process cannot be started.
    """
    if _stopping.is_set():
        return Outcome("was stopped", 0.0, 0.0)
    start = time.monotonic()
    environment = os.environ | dict.fromkeys(THREADS, str(limits.threads))
    environment["PYTHONIOENCODING"] = "utf-8:backslashreplace"  # of the log
    with log.open("wb") as said:
        child = subprocess.Popen(  # noqa: S603, our own interpreter
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment,
            # Only the parent handles Ctrl-C.
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # of Windows
        )
        _running.add(child)
        try:
            _send(child, f"{limits.seconds}\n{task}\n")
            why, peak_gb = _watch(child, start, limits)
        finally:
            _end(child)
            _running.discard(child)
    seconds = time.monotonic() - start
    if child.returncode == 0:
        return Outcome(None, seconds, peak_gb)
    if why is None and seconds >= limits.seconds:
        why = f"took longer than {limits.seconds:g} s"
    return Outcome(why or _reason(child.returncode, log), seconds, peak_gb)


def stop() -> None:
    """End all processes started here and start no more."""
    _stopping.set()
    for child in list(_running):
        child.kill()


def receive() -> str:
    """In the process: return the task, and end with the parent or when the time is up."""
    seconds, task = float(sys.stdin.readline()), sys.stdin.readline()
    # Works wherever the process hangs, since it is C and needs no interpreter lock; logs the place.
    faulthandler.dump_traceback_later(seconds, exit=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return task


def _end_with_parent() -> None:
    sys.stdin.read()  # until the parent, which never writes again, closes it or dies
    os._exit(1)


def _send(child: "subprocess.Popen[bytes]", text: str) -> None:
    assert child.stdin is not None
    with suppress(BrokenPipeError):  # it has ended already; its exit code tells why
        child.stdin.write(text.encode())
        child.stdin.flush()


def _watch(
    child: "subprocess.Popen[bytes]", start: float, limits: Limits
) -> tuple[str | None, float]:
    """Wait; return why it had to be stopped, if it had to, and its largest memory in GB."""
    import psutil

    process, peak_gb = psutil.Process(child.pid), 0.0
    while True:
        with suppress(subprocess.TimeoutExpired):
            child.wait(LOOK_SECONDS)
            return None, peak_gb
        try:
            # In a virtual environment of Windows, python.exe starts the real one.
            family = [process, *process.children()] if IS_WINDOWS else [process]
            peak_gb = max(peak_gb, sum(one.memory_info().rss for one in family) / 1e9)
        except psutil.Error:
            continue  # it has just ended
        if peak_gb > limits.memory_gb:
            return f"needed more than {limits.memory_gb:g} GB of memory", peak_gb
        if time.monotonic() - start > limits.seconds + GRACE_SECONDS:
            return f"took longer than {limits.seconds:g} s", peak_gb


def _end(child: "subprocess.Popen[bytes]") -> None:
    if child.poll() is None:
        child.kill()
        try:
            child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            child.returncode = -9  # it hangs in a disk access and cannot be ended
    if child.stdin is not None:
        with suppress(BrokenPipeError):
            child.stdin.close()


def _reason(code: int, log: Path) -> str:
    """Why a process failed: the last line of its log, or the signal that ended it."""
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = said[-1].removeprefix("error: ") if said else ""
    if code >= 0:
        return last or f"ended with exit code {code}"
    name = signal.Signals(-code).name
    memory = ": was the machine out of memory?" if name == "SIGKILL" else ""
    return f"was ended by {name}{memory}"
