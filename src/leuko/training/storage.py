"""Weights to start from, to be taught by, and to keep: model folders and files of weights."""

import gzip
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
from leuko.model.weights import find


class Weights(NamedTuple):
    """Those of a network, and its shape."""

    classes: int
    stages: Stages
    side_maps: int
    state: dict[str, Tensor]


def is_file(name: str) -> bool:
    """Whether a start or a teacher is a file of weights, not a model with a card."""
    return Path(name).is_file()


def read_weights(name: str) -> Weights:
    """The weights of a model, by its name or folder, or of a file `.safetensors` or
    `.safetensors.gz`, in 8 bits too, with a scale beside each (`NAME.scale`).

    Raises LeukoError if there is no such model, or the file holds no network.
    """
    if not is_file(name):
        folder = find(name)
        card = load_card(folder)
        network = read_network(folder, card)
        return Weights(len(card.classes), card.stages, card.side_maps, network.state_dict())
    path = Path(name)
    try:
        data = path.read_bytes()
        stored = safetensors.torch.load(gzip.decompress(data) if path.suffix == ".gz" else data)
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
    except (OSError, EOFError, KeyError, RuntimeError, SafetensorError) as error:
        raise LeukoError(
            f"{path} does not hold the weights of a network of leuko train; expected "
            ".safetensors or .safetensors.gz"
        ) from error
    return weights


def network(name: str) -> SpecialisedVGG:
    """The network of a model or of a file of weights. Raises LeukoError as `read_weights` does."""
    return _network(read_weights(name))


def _network(weights: Weights) -> SpecialisedVGG:
    built = SpecialisedVGG(weights.classes, weights.stages, weights.side_maps)
    built.load_state_dict(weights.state)
    return built.to(memory_format=torch.channels_last)  # type: ignore[no-any-return,call-overload]


def with_rims(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model of all `Tissue` classes, or of one without the class of rims, which is
    put between white matter and WMH."""
    state = dict(state)
    if len(state["fusion.bias"]) == len(Tissue):
        return state
    for name, shift in (("fusion.weight", 0.0), ("fusion.bias", -0.5)):
        value = state[name]
        between = value[Tissue.WHITE : Tissue.RIM + 1].mean(dim=0, keepdim=True) + shift
        state[name] = torch.cat([value[: Tissue.RIM], between, value[Tissue.RIM :]])
    return state


def save_model(folder: Path, state: Mapping[str, Tensor], card: ModelCard) -> None:
    """Write a model folder: its weights and its card."""
    tensors = {name: value.cpu().contiguous() for name, value in state.items()}
    with staged(folder) as scratch:
        # save_file would hide the weights from colleagues.
        (scratch / WEIGHTS_FILE).write_bytes(safetensors.torch.save(tensors))
        save_card(scratch, card)
