"""Libraries that only an extra of the installation brings: looked for before they are imported."""

from importlib.util import find_spec

from leuko.errors import LeukoError

COHORT = ("distributed", "psutil")
TRAINING = ("torch", "lightning_fabric", "safetensors", "onnx", "tensorboard")


def require(*libraries: str, extra: str) -> None:
    """Raises LeukoError where one of the libraries is not installed, naming the extra to install.

    None of them is imported.
    """
    missing = [name for name in libraries if find_spec(name) is None]
    if missing:
        raise LeukoError(f'this needs {", ".join(missing)}; pip install "leuko[{extra}]"')
