"""A model and slices become probabilities. torch is imported only when a model is loaded."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from leuko.channels import centred
from leuko.errors import LeukoError
from leuko.volume import Array
from leuko.weights import WEIGHTS_FILE, ModelCard, load_card

if TYPE_CHECKING:
    from leuko.network import SpecialisedVGG

Device = Literal["cpu", "cuda", "mps"]

# Slices at once. Fixed, so that no setting of it can change a mask; more gains nothing on a CPU.
BATCH = 4


@dataclass(frozen=True, eq=False)
class Model:
    """A network on a device, ready to use, and its card."""

    card: ModelCard
    network: "SpecialisedVGG"
    device: Device

    def predict(self, slices: Array) -> Array:
        """Probability of WMH (N, H, W), float32 in [0, 1], of colour slices (N, H, W, 3), uint8."""
        import torch

        probabilities = np.empty(slices.shape[:3], dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(slices), BATCH):
                batch = centred(slices[start : start + BATCH])
                # permuting NHWC gives channels_last without a copy
                images = torch.from_numpy(batch).permute(0, 3, 1, 2).to(self.device)
                wmh = self.network(images).softmax(dim=1)[:, -1]
                probabilities[start : start + BATCH] = wmh.cpu().numpy()
        return probabilities


def load(folder: Path, *, device: Device = "cpu", threads: int | None = None) -> Model:
    """The model in a folder, its weights checked, on a device.

    `threads` bounds the CPU's; by default those that this process may use. Raises LeukoError for
    a folder that is no model, for a device that is not there, and without torch.
    """
    card = load_card(folder)
    require_device(device)
    import torch
    from safetensors.torch import load_file

    from leuko.network import SpecialisedVGG

    torch.set_num_threads(threads or available_cpus())
    network = SpecialisedVGG(len(card.classes), card.stages, card.side_maps)
    try:
        network.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except RuntimeError as error:
        raise LeukoError(
            f"{folder}: weights and card do not describe one network; copy the folder again"
        ) from error
    network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Model(card, network, device)


def require_device(device: Device) -> None:
    """Raises LeukoError unless torch is installed and `device` can be used."""
    there = torch_devices()
    if not there[device]:
        usable = ", ".join(name for name, found in there.items() if found)
        raise LeukoError(f"no {device} device was found here; use --device with one of: {usable}")


def torch_devices() -> dict[Device, bool]:
    """Which devices torch can use here. Raises LeukoError without torch."""
    try:
        import torch
    except ImportError as error:
        raise LeukoError(
            'this needs PyTorch, which is not installed; pip install "leuko[train]"'
        ) from error
    return {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }


def available_cpus() -> int:
    """Processors that this process may use: its affinity, and the cgroup's quota in containers."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        limit = max(1, round(int(quota) / int(period)))
    except (OSError, ValueError):  # no such file, or a quota of "max": no limit
        limit = count or 1
    return min(count or 1, limit)
