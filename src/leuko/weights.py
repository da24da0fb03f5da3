"""Models on disk: a folder with `model.safetensors` and the `card.json` that says how to use it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from leuko.channels import Preparation
from leuko.errors import LeukoError
from leuko.files import read_json, sha256, write_json

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "card.json"
FORMAT = 1


@dataclass(frozen=True)
class ModelCard:
    """Everything that using a model needs, so that no setting is repeated at inference."""

    name: str
    classes: tuple[str, ...]  # one of many; the last is "wmh"
    preparation: Preparation
    stages: tuple[tuple[int, ...], ...]  # maps after each convolution, stage by stage
    side_maps: int  # K, maps of each specialised layer
    training: Mapping[str, Any]  # recipe, start, steps, seed, subjects
    threshold: float = 0.5  # of the WMH probability: the commoner class wins
    smallest_lesion_mm3: float = 5.0  # a speck of a voxel or two at common resolutions
    licence: str = "not stated; set by whoever trained the model and owns the scans"
    weights_sha256: str = ""
    format: int = FORMAT
    leuko_version: str = ""

    def __post_init__(self) -> None:
        if not (0 < self.threshold < 1 and self.smallest_lesion_mm3 >= 0 and self.side_maps > 0):
            raise ValueError("threshold, smallest lesion or number of maps out of range")

    @classmethod
    def from_json(cls, content: Mapping[str, Any], *, source: Path) -> Self:
        """A card from its JSON object. Raises LeukoError when it does not read as one."""
        known = {f.name for f in fields(cls)}
        try:
            if int(content["format"]) > FORMAT:
                raise LeukoError(
                    f"{source} has format {content['format']}, newer than this Leuko; update Leuko"
                )
            return cls(
                **{k: v for k, v in content.items() if k in known}
                | {
                    "preparation": Preparation(**content["preparation"]),
                    "classes": tuple(content["classes"]),
                    "stages": tuple(tuple(widths) for widths in content["stages"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise LeukoError(f"{source} is no model card ({error}); copy it again") from error


def save_card(folder: Path, card: ModelCard) -> ModelCard:
    """Write the card beside the weights that lie in `folder`, with their hash; returns it."""
    hashed = replace(card, weights_sha256=sha256(folder / WEIGHTS_FILE))
    write_json(folder / CARD_FILE, asdict(hashed))
    return hashed


def load_card(folder: Path) -> ModelCard:
    """The card of a model folder whose weights have been checked against their hash.

    Raises LeukoError when the folder is no model, or the weights are not those of the card.
    """
    if not folder.is_dir():
        raise LeukoError(f"{folder} does not exist; give a model folder, as leuko train makes it")
    card_path, weights_path = folder / CARD_FILE, folder / WEIGHTS_FILE
    if not card_path.is_file():
        hint = (
            f"its training is not finished: leuko train --resume {folder}"
            if (folder / "run.json").is_file()
            else "give the folder that leuko train wrote"
        )
        raise LeukoError(f"{folder} has no {CARD_FILE}; {hint}")
    card = ModelCard.from_json(read_json(card_path, what="model card"), source=card_path)
    if not weights_path.is_file():
        raise LeukoError(f"{folder} has a card but no {WEIGHTS_FILE}; copy the whole folder again")
    found = sha256(weights_path)
    if found != card.weights_sha256:
        raise LeukoError(
            f"{weights_path} is not the file that its card describes (SHA-256 {found[:12]}..., "
            f"expected {card.weights_sha256[:12]}...); copy the model folder again"
        )
    return card
