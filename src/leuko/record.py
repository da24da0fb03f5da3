"""What a run says of itself: versions, seconds, warnings."""

import importlib.metadata
import logging
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Stopwatch:
    """Seconds by stage, in the order in which the stages were first run."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, *, before: float = 0.0) -> Iterator[None]:
        """Time a stage; `before` are the seconds that an earlier, interrupted try has spent."""
        start = time.perf_counter() - before
        yield
        spent = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.seconds[name] = round(spent, 3)


@contextmanager
def kept_warnings() -> Iterator[list[str]]:
    """All that Leuko warns of inside, as it is told to the user, in order."""
    kept: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: kept.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("leuko")
    logger.addHandler(handler)
    try:
        yield kept
    finally:
        logger.removeHandler(handler)


def versions() -> dict[str, str]:
    """Of Leuko and all that can change its numbers."""
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
