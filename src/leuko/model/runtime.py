"""Runs a model on slices, with onnxruntime or torch.

torch runs models that are not exported, and GPUs that onnxruntime does not support; it is imported
only then.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime

from leuko.errors import LeukoError, require
from leuko.model.card import AGAIN, ONNX_FILE, ModelCard, load_card
from leuko.model.weights import DEFAULT, find
from leuko.preprocessing.slices import HEAD_PART_OF_TISSUE, MULTIPLE, centred
from leuko.volume import Array

Device = Literal["cpu", "cuda", "mps"]

# Slices per batch: more need more memory and are no faster on a CPU.
BATCH = 4


@dataclass(frozen=True, eq=False)
class Model:
    """A network on a device, ready to use, and its card."""

    card: ModelCard
    network: Callable[[Array], Array]  # uint8 (N, H, W, 3) to float32 (N, C, H, W)
    folder: Path | None = None  # the folder it was loaded from
    # Frees memory that the network keeps between batches.
    release: Callable[[], None] = lambda: None

    def predict(self, slices: Array, *, batch: int = BATCH) -> Array:
        """Probabilities (N, C, H, W), float32, of colour slices (N, H, W, 3), uint8.

        They sum to 1 over the model's classes. Slices in which no pixel is as bright as a head
        are set to background without running the network.
        """
        dark = HEAD_PART_OF_TISSUE * self.card.preparation.tissue_grey
        shown = np.flatnonzero((slices > dark).any(axis=(1, 2, 3)))
        count, height, width, _ = slices.shape
        classes = len(self.card.classes)
        probabilities = np.zeros((count, classes, height, width), dtype=np.float32)
        probabilities[:, 0] = 1
        for start in range(0, len(shown), batch):
            part = shown[start : start + batch]
            probabilities[part] = self.network(slices[part])
        return probabilities


def load_model(
    name: str | Path = DEFAULT,
    *,
    device: Device = "cpu",
    threads: int | None = None,
) -> Model:
    """A model by its name or folder, ready to serve many calls.

    Raises LeukoError if the model does not exist or the device is not available.

    >>> import leuko
    >>> leuko.load_model().card.name
    'leuko-base'
    """
    return load(find(str(name)), device=device, threads=threads)


def load(
    folder: Path, *, device: Device = "cpu", threads: int | None = None, by_torch: bool = False
) -> Model:
    """The model in a folder, on a device, after its weights are verified.

    `threads` limits CPU threads; by default all processors that this process may use. `by_torch`
    always uses torch, in float32, as training does. Raises LeukoError if the folder is no model,
    the device is not available, or torch is needed but not installed.
    """
    card = load_card(folder)
    threads = threads or available_cpus()
    providers: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    provider = "none" if by_torch else providers.get(device, "none")
    if card.weights == ONNX_FILE and provider in onnxruntime.get_available_providers():
        session = _session(folder / ONNX_FILE, provider, threads)
        _require_fit(session, card, folder)
        if provider in session.get_providers():  # missing if its libraries did not load
            return Model(card, _onnx_network(session), folder, partial(_shrink, session))
    require_device(device)
    return Model(card, _torch_network(folder, card, device, threads), folder)


def _session(path: Path, provider: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only; it warns of fallbacks on every start
    content = path.read_bytes()
    if b"location" in content:  # how ONNX names another file; onnxruntime before 1.24 reads any
        raise LeukoError(f"{path} refers to other files; give a model whose weights are one file")
    onnxruntime.disable_telemetry_events()  # its builds for Windows have them
    try:
        return onnxruntime.InferenceSession(content, options, providers=[provider])
    except Exception as error:  # onnxruntime's exceptions have no common class
        raise LeukoError(f"{path} cannot be loaded by onnxruntime ({error}); {AGAIN}") from error


def _require_fit(session: onnxruntime.InferenceSession, card: ModelCard, folder: Path) -> None:
    """Raises LeukoError unless the ONNX file takes slices and returns the classes of its card."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    found = [(value.name, value.type, value.shape[-1:]) for value in inputs] + [
        (value.name, value.type, value.shape[1:2]) for value in outputs
    ]
    if found != [
        ("slices", "tensor(uint8)", [3]),
        ("probabilities", "tensor(float)", [len(card.classes)]),
    ]:
        raise LeukoError(f"{folder} has weights that do not fit its card; copy the folder again")


def _onnx_network(session: onnxruntime.InferenceSession) -> Callable[[Array], Array]:
    def run(slices: Array) -> Array:
        probabilities: Array = session.run(["probabilities"], {"slices": slices})[0]
        return probabilities

    return run


def _shrink(session: onnxruntime.InferenceSession) -> None:
    """Return onnxruntime's arena to the system; this needs a run, here of the smallest slice."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    smallest = np.zeros((1, MULTIPLE, MULTIPLE, 3), dtype=np.uint8)
    session.run(["probabilities"], {"slices": smallest}, options)


def _torch_network(
    folder: Path, card: ModelCard, device: Device, threads: int
) -> Callable[[Array], Array]:
    require("torch", "onnx", "safetensors", extra="train")
    import torch

    from leuko.model.onnx_export import read_network

    torch.set_num_threads(threads)
    network = read_network(folder, card)
    network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(slices: Array) -> Array:
        # permuting NHWC gives channels_last without a copy
        images = torch.from_numpy(centred(slices)).permute(0, 3, 1, 2).to(device)
        with torch.inference_mode():
            return network(images).softmax(dim=1).cpu().numpy()  # type: ignore[no-any-return]

    return run


def require_device(device: Device) -> None:
    """Raises LeukoError unless torch is installed and `device` can be used."""
    there = torch_devices()
    if not there[device]:
        usable = ", ".join(name for name, found in there.items() if found)
        raise LeukoError(f"no {device} device was found; use --device with one of: {usable}")


def torch_devices() -> dict[Device, bool]:
    """Which devices torch can use. Raises LeukoError if torch is not installed."""
    require("torch", extra="train")
    import torch

    return {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }


def available_cpus() -> int:
    """Number of processors that this process may use, by CPU affinity and cgroup quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        limit = max(1, round(int(quota) / int(period)))
    except (OSError, ValueError):  # no such file, or a quota of "max": no limit
        limit = count or 1
    return min(count or 1, limit)
