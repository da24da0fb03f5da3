"""LeukoError, the exception for the person who runs Leuko, and the check for missing libraries."""

import re
from importlib.util import find_spec

# Libraries of the extras `cohort` and `train`.
COHORT_LIBRARIES = ("distributed", "psutil")
TRAINING_LIBRARIES = ("torch", "lightning_fabric", "safetensors", "onnx", "tensorboard")


class LeukoError(Exception):
    """A problem the user can fix.

    The message is one line: what was seen, what was expected, what to do next.
    """


def in_one_line(error: BaseException) -> str:
    """The message of another library's exception in one line; its type if the message is empty."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return re.sub(r":;", ":", "; ".join(lines)) or type(error).__name__


def require(*libraries: str, extra: str) -> None:
    """Raises LeukoError, naming the extra to install, if one of the libraries is not installed.

    No library is imported.
    """
    missing = [name for name in libraries if find_spec(name) is None]
    if missing:
        raise LeukoError(f'{", ".join(missing)} not installed; pip install "leuko[{extra}]"')
