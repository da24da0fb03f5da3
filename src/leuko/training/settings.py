"""What decides the trained weights, besides the scans, and whether it makes sense together."""

from dataclasses import dataclass, field
from typing import Any

from leuko.errors import LeukoError
from leuko.evaluation.labels import BACKGROUND, UNKNOWN, WMH, WMH_LABELS, Labelling, tissue_labels
from leuko.io.tissue import CLASSES as MADE
from leuko.io.tissue import CLASSES_WITHOUT_RIM, Tissue
from leuko.model import imagenet
from leuko.model.card import are_rims
from leuko.model.network import SIDE_MAPS, VGG16, Stages
from leuko.preprocessing.slices import Preparation
from leuko.synthesis.settings import SynthesisSettings
from leuko.training.recipes import MODERN, Augmentation, Mixture, Phase, Recipe

CLASSES = WMH_LABELS.classes
SYNTHETIC = Preparation()  # what synthetic slices look like
MIXED = Preparation(t1_optional=True)  # what slices of a mixed training look like
# The classes of models that synthetic slices can teach: all, all but the rims of the ventricles, or
# WMH alone.
TAUGHT = (MADE, CLASSES_WITHOUT_RIM, CLASSES)
NO_MODELS = ("imagenet", "none")  # to start from


@dataclass(frozen=True)
class Settings:
    """What decides the trained weights, besides the scans: kept in the run, and all that resuming
    needs."""

    data: str
    recipe: Recipe = MODERN
    preparation: Preparation = field(default_factory=Preparation)
    stages: Stages = VGG16
    side_maps: int = SIDE_MAPS
    # Those of the labels; labels of WMH also train a model of more classes that it starts from.
    classes: tuple[str, ...] = CLASSES
    label_names: tuple[str, ...] = ()  # of the values in tissue.nii.gz; none: the labels are of WMH
    init: str = "imagenet"  # or "none", or a model folder
    imagenet_weights: str = imagenet.DEFAULT
    imagenet_kind: imagenet.Kind | None = None  # of a weight file that cannot be told
    seed: int = 0
    held_out: float = 0.2  # part of the subjects that are measured on, not trained with
    folds: int = 0  # parts of the subjects, each measured by a model trained without it; 0: none
    patience: int = 0  # validations in a row without gain that end the training; 0: none is made
    heads: str | None = None  # label maps that synthetic images are made of; None: the MNI152 brain
    synthesis: SynthesisSettings = field(default_factory=SynthesisSettings)  # of synthetic images
    compiled: bool = False  # by torch.compile
    # Of a mixed training.
    atlas: str | None = None  # lesion masks in MNI space for synthetic images
    unlabelled: str | None = None  # scans that the teachers label
    sources: str | None = None  # table of the sources of all scans
    leave: tuple[str, ...] = ()  # scans, people, sources and label maps that are left out
    teachers: tuple[str, ...] = ()  # models or files of weights
    processes: int = 1  # that make synthetic scans; do not change the weights

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Settings":
        recipe = content["recipe"]
        mixture = recipe.get("mixture")
        if mixture:
            crop = mixture["crop"]
            mixture = Mixture(**mixture | {"crop": tuple(crop) if crop else None})
        recipe = recipe | {
            "mixture": mixture,
            "phases": tuple(Phase(**phase) for phase in recipe["phases"]),
            "augmentation": Augmentation(
                **recipe["augmentation"] | {"scale": tuple(recipe["augmentation"]["scale"])}
            ),
        }
        return cls(
            **content
            | {
                "recipe": Recipe(**recipe),
                "preparation": Preparation(**content["preparation"]),
                "stages": tuple(tuple(widths) for widths in content["stages"]),
                "synthesis": SynthesisSettings.from_json(content.get("synthesis", {})),
                "classes": tuple(content["classes"]),
                "label_names": tuple(content.get("label_names", ())),
                "leave": tuple(content.get("leave", ())),
                "teachers": tuple(content.get("teachers", ())),
            }
        )

    @property
    def labelling(self) -> Labelling:
        return tissue_labels(self.label_names) if self.label_names else WMH_LABELS

    def require_sense(self) -> None:
        """Raises LeukoError if two settings contradict each other."""
        recipe = self.recipe
        if self.folds == 1:
            raise LeukoError(
                "one fold leaves no subject to train with; give --folds 2 or more, or 0"
            )
        if self.patience and recipe.start_part:
            raise LeukoError(
                f"the recipe {recipe.name} has a fixed length, and keeps a part of its start; "
                "leave --patience away"
            )
        if self.patience * recipe.validate_steps >= recipe.steps:
            raise LeukoError(
                f"{recipe.steps} steps, with a look every {recipe.validate_steps}, are over before "
                f"a patience of {self.patience} is; leave --patience away, or train longer"
            )
        if recipe.normalised and self.init != "none":
            raise LeukoError(
                f"the recipe {recipe.name} is for a training from nothing; the start is {self.init}"
            )
        if recipe.mixture:
            self._require_mixture()
            return
        self._require_classes()
        if recipe.synthetic_part:
            self._require_synthesis()
        elif self.heads:
            raise LeukoError(
                f"the recipe {recipe.name} makes no synthetic images; leave --heads away, or use "
                "--recipe adapt"
            )

    def _require_mixture(self) -> None:
        if self.unlabelled and not self.teachers:
            raise LeukoError(
                "--unlabelled needs models that label these scans: add --teacher MODEL"
            )
        if self.folds or self.patience or self.held_out or self.label_names:
            raise LeukoError(
                f"the recipe {self.recipe.name} trains with all scans but those left out; leave "
                "--folds, --patience, --held-out and --classes away, and use --leave"
            )
        if (self.classes, self.preparation) != (MADE, MIXED):
            raise LeukoError(
                f"the recipe {self.recipe.name} trains the classes {', '.join(MADE)} with the "
                f"channels {MIXED.channels}"
            )

    def _require_classes(self) -> None:
        if not self.label_names:
            if self.classes[-1] != WMH:
                raise LeukoError(
                    f"{self.init} has the classes {', '.join(self.classes)} and cannot learn from "
                    "labels of WMH; train it with label maps and --classes"
                )
            return
        classes = self.labelling.classes
        for name in self.label_names:
            meant = name.casefold()
            if name != meant and meant in (BACKGROUND, WMH, UNKNOWN):
                raise LeukoError(f"--classes names {name}; write {meant}, in small letters")
        if self.label_names[0] != BACKGROUND or len(classes) < 2:
            raise LeukoError(
                f"--classes names the values 0, 1, 2, ... of tissue.nii.gz: expected {BACKGROUND} "
                f"first and another class, found {','.join(self.label_names)}"
            )
        if not all(name.isprintable() and name for name in classes):
            raise LeukoError("--classes has an empty name, or one that cannot be printed")
        if Tissue.RIM.label in classes and not are_rims(classes):
            raise LeukoError(
                "--classes names rim, the caps and rims of the ventricles, which expects the class "
                f"white, and rim and {WMH} as the last two; found {', '.join(classes)}"
            )
        if classes != self.classes:
            raise LeukoError(
                f"--classes gives {', '.join(classes)}, but {self.init} has the classes "
                f"{', '.join(self.classes)}; give those, or start from imagenet or none"
            )
        if self.folds or self.recipe.synthetic_part:
            raise LeukoError(
                "cross-validation and the recipe adapt are for labels of WMH alone; leave --folds "
                "away and use --recipe modern or xu2017 with --classes"
            )

    def _require_synthesis(self) -> None:
        preparation = self.preparation
        shown = (preparation.channels, preparation.pixel_mm)
        if shown != (SYNTHETIC.channels, SYNTHETIC.pixel_mm):
            raise LeukoError(
                f"the recipe {self.recipe.name} mixes in synthetic images, which are made for the "
                f"channels {SYNTHETIC.channels} at {SYNTHETIC.pixel_mm:g} mm; this model has "
                f"{preparation.channels} at {preparation.pixel_mm:g} mm: use --recipe modern"
            )
        if self.classes not in TAUGHT:
            raise LeukoError(
                f"the recipe {self.recipe.name} mixes in synthetic images of the classes "
                f"{', '.join(MADE)}; this model has {', '.join(self.classes)}: use --recipe "
                "modern"
            )
