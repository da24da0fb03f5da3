"""Findings of a run, its seconds per stage, and the versions of the libraries it used."""

import importlib.metadata
import logging
import platform
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

Level = Literal["note", "warning", "do not use"]
LEVELS: dict[Level, int] = {
    "note": logging.INFO,
    "warning": logging.WARNING,
    "do not use": logging.ERROR,
}  # the least serious first, as `logging` ranks them

OUTPUT = "output"  # code of the finding that a file could not be written
DONE_WITH_WARNINGS = 3  # exit code

# Normal caps and rims of the ventricles: in a mask of their own, in the mask of WMH, or in neither.
Rims = Literal["separate", "include", "exclude"]
# Whether they are in the mask of WMH; None: the model has no class for them.
RIMS_ARE: dict[Rims | None, str] = {
    "separate": "not in the mask",
    "include": "in the mask",
    "exclude": "not in the mask",
    None: "not distinguished from WMH",
}

# Where those are whose volume is known; None: with a given mask.
RIMS_LIE = RIMS_ARE | {None: "found by the model outside the mask"}

log = logging.getLogger(__name__)


@dataclass
class Stopwatch:
    """Seconds per stage, in the order in which the stages first ran."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, *, before: float = 0.0) -> Iterator[None]:
        """Time a stage and log its name; `before` is the seconds that an earlier, interrupted
        attempt spent."""
        log.debug("%s", name, extra={"stage": name})
        start = time.perf_counter() - before
        yield
        spent = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.seconds[name] = round(spent, 3)


@dataclass(frozen=True)
class Finding:
    """A remark on a result: a note, a warning, or a reason not to use the result."""

    level: Level
    code: str  # names the check, for programs
    text: str  # for people


@contextmanager
def kept_findings() -> Iterator[list[Finding]]:
    """The findings of a run, in order: warnings that this thread logs inside the `with` block, and
    findings added by `tell`."""
    kept: list[Finding] = []
    thread = threading.get_ident()

    def keep(record: logging.LogRecord) -> None:
        if record.thread == thread and not hasattr(record, "finding"):
            module = record.name.rpartition(".")[2]
            kept.append(Finding("warning", module, record.getMessage()))

    handler = logging.Handler(logging.WARNING)
    handler.emit = keep  # type: ignore[method-assign]
    logger = logging.getLogger("leuko")
    logger.addHandler(handler)
    try:
        yield kept
    finally:
        logger.removeHandler(handler)


def tell(findings: list[Finding], finding: Finding) -> None:
    """Add a finding to those of the run, and log it."""
    findings.append(finding)
    log.log(LEVELS[finding.level], "%s", finding.text, extra={"finding": finding})


def is_useless(findings: Iterable[Finding]) -> bool:
    """Whether a finding is a reason not to use the result."""
    return any(finding.level == "do not use" for finding in findings)


def ranked(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings with the most serious first."""
    return tuple(sorted(findings, key=lambda finding: -LEVELS[finding.level]))


def exit_code(findings: Iterable[Finding]) -> int:
    """The exit code of a finished command: DONE_WITH_WARNINGS if a file could not be written or a
    check found a reason not to use the result, else 0."""
    found = list(findings)
    is_whole = not any(finding.code == OUTPUT for finding in found)
    return 0 if is_whole and not is_useless(found) else DONE_WITH_WARNINGS


class LevelFormatter(logging.Formatter):
    """Formats a message as one line with its level first: note, warning or do not use."""

    def format(self, record: logging.LogRecord) -> str:
        """The level and the message."""
        level = [name for name, number in LEVELS.items() if number <= record.levelno][-1:]
        return ": ".join([*level, record.getMessage()])


def stderr_handler() -> logging.Handler:
    """A handler that prints Leuko's log to stderr with levels; sets its logger to include notes."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.INFO)
    handler.setFormatter(LevelFormatter())
    logging.getLogger("leuko").setLevel(logging.INFO)
    return handler


def versions() -> dict[str, str]:
    """The versions of Python, Leuko and the libraries that can change its numbers."""
    names = (
        "leuko", "numpy", "scipy", "nibabel", "SimpleITK", "diplib", "onnxruntime", "torch",
        "pydicom", "highdicom",
    )  # fmt: skip
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
