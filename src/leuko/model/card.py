"""The model card: classes, preparation, thresholds, training and licence of a model.

A model folder holds `card.json` and the weights: `model.safetensors`, written by training, or
`model.onnx`, written by export.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, Self

from leuko.errors import LeukoError
from leuko.io.files import read_json, sha256, write_json
from leuko.io.tissue import Tissue
from leuko.model.calibration import Calibration
from leuko.preprocessing.slices import Preparation

WEIGHTS_FILE = "model.safetensors"
ONNX_FILE = "model.onnx"
CARD_FILE = "card.json"
FORMAT = 1
AGAIN = (  # what to do about a damaged model
    "copy the model folder again or, if it was pulled, delete it and run leuko models pull again"
)


@dataclass(frozen=True)
class Limits:
    """Limits of a lesion: probability thresholds and smallest volume."""

    threshold: float  # smallest probability of a lesion voxel, 0 to 1
    lesion_threshold: float  # smallest peak probability of a lesion, `threshold` or more
    smallest_mm3: float

    def shifted(self, log_odds: float) -> "Limits":
        """Both thresholds shifted by `log_odds`: a positive shift gives fewer voxels."""
        first, second = (
            1 / (1 + math.exp(-_log_odds(p) - log_odds))
            for p in (self.threshold, self.lesion_threshold)
        )
        return Limits(first, second, self.smallest_mm3)


@dataclass(frozen=True)
class ModelCard:
    """Everything needed to use a model, so that no setting is repeated at inference."""

    name: str
    classes: tuple[str, ...]  # mutually exclusive; "wmh" is the last, if it is one of them
    preparation: Preparation
    stages: tuple[tuple[int, ...], ...]  # maps after each convolution, stage by stage
    side_maps: int  # K, maps of each specialised layer
    training: Mapping[str, Any]  # recipe, start, steps, seed, subjects, synthesis
    weights: str = WEIGHTS_FILE  # or ONNX_FILE
    three_planes: bool = False  # nearly isotropic scans are sliced along all three axes
    threshold: float = 0.5  # of the WMH probability; at 0.5 the more probable class is taken
    lesion_threshold: float | None = None  # of a lesion's peak probability; None: `threshold`
    edges: bool = False  # lesion edges are refined from FLAIR grey values, as readers draw them
    smallest_lesion_mm3: float = 5.0  # one or two voxels at common resolutions
    calibration: Calibration | None = None  # None: no intervals are reported
    licence: str = "not stated; set by whoever trained the model and owns the scans"
    weights_sha256: str = ""
    format: int = FORMAT
    leuko_version: str = ""

    def __post_init__(self) -> None:
        right = {
            "name": _is_line(self.name),
            "licence": _is_line(self.licence),
            "weights": self.weights in (WEIGHTS_FILE, ONNX_FILE),
            "weights_sha256": isinstance(self.weights_sha256, str),
            "classes": all(map(_is_line, self.classes))
            and len(self.classes) == len(set(self.classes)) > 1
            and Tissue.WMH.label not in self.classes[:-1]
            and (not self.knows_rims or are_rims(self.classes)),
            "stages": all(map(_is_count, [len(self.stages), *map(len, self.stages)])),
            "maps": all(map(_is_count, [self.side_maps, *chain(*self.stages)])),
            "three_planes": isinstance(self.three_planes, bool),
            "threshold": 0 < self.threshold < 1,
            "lesion_threshold": self.lesion_threshold is None
            or self.threshold <= self.lesion_threshold < 1,
            "edges": isinstance(self.edges, bool),
            "smallest_lesion_mm3": 0 <= self.smallest_lesion_mm3 < math.inf,
            "training": isinstance(self.training, Mapping),
        }
        wrong = [name for name, is_right in right.items() if not is_right]
        if wrong:
            raise ValueError(f"invalid {', '.join(wrong)}")

    def number(self, tissue: Tissue) -> int | None:
        """The number of a tissue class in this model; None if the model lacks the class."""
        return self.classes.index(tissue.label) if tissue.label in self.classes else None

    @property
    def knows_wmh(self) -> bool:
        return self.classes[-1] == Tissue.WMH.label

    def require_wmh(self) -> None:
        """Raises LeukoError if the model has no class for WMH."""
        if not self.knows_wmh:
            raise LeukoError(
                f"the model {self.name} has no class wmh; its classes are "
                f"{', '.join(self.classes)}: use a model with the class wmh, or call "
                "leuko.model.predict from Python"
            )

    @property
    def knows_rims(self) -> bool:
        """Whether the model has a class for normal caps and rims of the ventricles."""
        return Tissue.RIM.label in self.classes

    def require_rims(self) -> None:
        """Raises LeukoError if the model has no class for caps and rims."""
        if not self.knows_rims:
            raise LeukoError(
                f"the model {self.name} has no class rim; its classes are "
                f"{', '.join(self.classes)}: omit --rims include, or use a model with the class rim"
            )

    @property
    def tissues(self) -> tuple[str, ...]:
        """The classes without "rim": caps and rims are white matter."""
        return tuple(name for name in self.classes if name != Tissue.RIM.label)

    def limits(
        self, threshold: float | None = None, smallest_lesion_mm3: float | None = None
    ) -> Limits:
        """The limits of a lesion, by default those of the card. A given threshold shifts the lesion
        threshold by the same log odds.

        Raises LeukoError for a threshold outside (0, 1) and for a negative or infinite volume.
        """
        own = Limits(
            self.threshold, self.lesion_threshold or self.threshold, self.smallest_lesion_mm3
        )
        smallest = own.smallest_mm3 if smallest_lesion_mm3 is None else smallest_lesion_mm3
        if not 0 <= smallest < math.inf:
            raise LeukoError(
                f"the smallest lesion is {smallest:g} mm3; give a finite volume, 0 mm3 or more"
            )
        if threshold is None:
            return replace(own, smallest_mm3=smallest)
        if not 0 < threshold < 1:
            raise LeukoError(f"the threshold is {threshold:g}; give a number between 0 and 1")
        moved = own.shifted(_log_odds(threshold) - _log_odds(own.threshold))
        return Limits(threshold, max(threshold, moved.lesion_threshold), smallest)

    @classmethod
    def from_json(cls, content: Mapping[str, Any], *, source: Path) -> Self:
        """A card from its JSON object. Raises LeukoError if it is no valid card."""
        known = {f.name for f in fields(cls)}
        try:
            if int(content["format"]) > FORMAT:
                raise LeukoError(
                    f"{source} has format {content['format']}; this version of Leuko reads up to "
                    f"{FORMAT}: update Leuko"
                )
            return cls(
                **{k: v for k, v in content.items() if k in known}
                | {
                    "preparation": Preparation(**content["preparation"]),
                    "classes": tuple(content["classes"]),
                    "stages": tuple(tuple(widths) for widths in content["stages"]),
                    "calibration": Calibration.from_json(content["calibration"])
                    if content.get("calibration") is not None
                    else None,
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise LeukoError(f"{source} is not a valid model card ({error}); {AGAIN}") from error


def save_card(folder: Path, card: ModelCard) -> ModelCard:
    """Write the card, with the hash of the weights in `folder`; returns the card with the hash."""
    hashed = replace(card, weights_sha256=sha256(folder / card.weights))
    write_json(folder / CARD_FILE, asdict(hashed))
    return hashed


def load_card(folder: Path) -> ModelCard:
    """The card of a model folder, after its weights are verified against their hash.

    Raises LeukoError if the folder is no model or the weights have another hash.
    """
    if not folder.is_dir():
        raise LeukoError(f"{folder} does not exist; give a model folder, as leuko train writes it")
    card_path = folder / CARD_FILE
    if not card_path.is_file():
        hint = (
            f"its training is not finished; run leuko train --resume {folder}"
            if (folder / "run.json").is_file()
            else "give a folder written by leuko train or leuko export"
        )
        raise LeukoError(f"{folder} has no {CARD_FILE}: {hint}")
    card = ModelCard.from_json(read_json(card_path, what="model card"), source=card_path)
    weights_path = folder / card.weights
    if not weights_path.is_file():
        raise LeukoError(f"{folder} has a card but no {card.weights}; {AGAIN}")
    found = sha256(weights_path)
    if found != card.weights_sha256:
        raise LeukoError(
            f"{weights_path} has SHA-256 {found[:12]}...; its card expects "
            f"{card.weights_sha256[:12]}...: {AGAIN}"
        )
    return card


def are_rims(classes: tuple[str, ...]) -> bool:
    """Whether the classes end with rim and wmh and include white, which rims need."""
    ending = (Tissue.RIM.label, Tissue.WMH.label)
    return classes[-2:] == ending and Tissue.WHITE.label in classes


def _is_line(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 < value <= 4096


def _log_odds(p: float) -> float:
    return math.log(p / (1 - p))
