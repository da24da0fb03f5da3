"""The one exception that is meant for the person who runs Leuko, and libraries that are missing."""

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
    """All that another library's exception says, in one line; its type where it says nothing."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    return re.sub(r":;", ":", "; ".join(lines)) or type(error).__name__


def require(*libraries: str, extra: str) -> None:
    """Raises LeukoError where one of the libraries is not installed, naming the extra to install.

    None of them is imported.
    """
    missing = [name for name in libraries if find_spec(name) is None]
    if missing:
        raise LeukoError(f'this needs {", ".join(missing)}; pip install "leuko[{extra}]"')
