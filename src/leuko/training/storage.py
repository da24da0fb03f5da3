"""Reading and writing network weights: model folders and single weight files."""

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from leuko.errors import LeukoError
from leuko.io.files import staged
from leuko.io.tissue import Tissue
from leuko.model.card import WEIGHTS_FILE, ModelCard, load_card, save_card
from leuko.model.network import SpecialisedVGG, Stages
from leuko.model.onnx_export import read_network
from leuko.model.weights import LARGEST_BYTES, find


class Weights(NamedTuple):
    """The weights of a network, and the arguments of its `SpecialisedVGG`."""

    classes: int
    stages: Stages
    side_maps: int
    state: dict[str, Tensor]


def is_file(name: str) -> bool:
    """Whether `name` is a single weight file. If not, it is a model: its name or folder."""
    return Path(name).is_file()


def read_weights(name: str) -> Weights:
    """The weights of a model, or of a weight file (`.safetensors` or `.safetensors.gz`).

    `name` is a model's name or folder, or a path of a file. In a file, weights may be 8-bit
    integers; each tensor NAME is multiplied by the tensor `NAME.scale`, if the file contains it.
    Raises LeukoError if the model does not exist or the file contains no network.
    """
    if not is_file(name):
        folder = find(name)
        card = load_card(folder)
        network = read_network(folder, card)
        return Weights(len(card.classes), card.stages, card.side_maps, network.state_dict())
    path = Path(name)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
        if len(data) > LARGEST_BYTES:
            raise LeukoError(f"{path} holds more than {LARGEST_BYTES / 1e6:.0f} MB, the limit")
        stored = safetensors.torch.load(data)
        state = {
            key: value.float() * stored.get(f"{key}.scale", torch.ones(())).float()
            for key, value in stored.items()
            if not key.endswith(".scale")
        }
        maps: dict[str, list[int]] = {}
        for key, value in sorted(state.items()):
            if key.startswith("stages") and key.endswith("weight"):
                maps.setdefault(key.split(".")[1], []).append(len(value))
        weights = Weights(
            len(state["fusion.bias"]),
            tuple(map(tuple, maps.values())),
            len(state["sides.0.weight"]),
            state,
        )
        _network(weights)
    except (OSError, EOFError, zlib.error, KeyError, RuntimeError, SafetensorError) as error:
        raise LeukoError(
            f"{path} does not contain the weights of a network of leuko train; expected a "
            ".safetensors or .safetensors.gz file of such a network"
        ) from error
    return weights


def network(name: str) -> SpecialisedVGG:
    """The network of a model or a weight file. Raises LeukoError as `read_weights` does."""
    return _network(read_weights(name))


def _network(weights: Weights) -> SpecialisedVGG:
    built = SpecialisedVGG(weights.classes, weights.stages, weights.side_maps)
    built.load_state_dict(weights.state)
    return built.to(memory_format=torch.channels_last)  # type: ignore[no-any-return,call-overload]


def with_rims(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a network with all `Tissue` classes.

    A network without the class rim gets it, between white matter and WMH: its weights are the mean
    of both, with a lower bias.
    """
    state = dict(state)
    if len(state["fusion.bias"]) == len(Tissue):
        return state
    for name, shift in (("fusion.weight", 0.0), ("fusion.bias", -0.5)):
        value = state[name]
        between = value[Tissue.WHITE : Tissue.RIM + 1].mean(dim=0, keepdim=True) + shift
        state[name] = torch.cat([value[: Tissue.RIM], between, value[Tissue.RIM :]])
    return state


def save_model(folder: Path, state: Mapping[str, Tensor], card: ModelCard) -> None:
    """Write a model folder: the weights and the model card."""
    tensors = {name: value.cpu().contiguous() for name, value in state.items()}
    with staged(folder) as scratch:
        # Not save_file: it makes files that only their owner can read.
        (scratch / WEIGHTS_FILE).write_bytes(safetensors.torch.save(tensors))
        save_card(scratch, card)
