"""The settings of a training, and checks that they fit together."""

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
SYNTHETIC = Preparation()  # of synthetic slices
MIXED = Preparation(t1_optional=True)  # of slices for the recipe base
# Classes of the models that can be trained with synthetic slices: all classes, all without rims of
# the ventricles, or WMH alone.
TAUGHT = (MADE, CLASSES_WITHOUT_RIM, CLASSES)
NO_MODELS = ("imagenet", "none")  # values of `init` that are not models


@dataclass(frozen=True)
class Settings:
    """All settings that determine the trained weights, as stored in the run.

    Together with the scans they are all that resuming needs.
    """

    data: str
    recipe: Recipe = MODERN
    preparation: Preparation = field(default_factory=Preparation)
    stages: Stages = VGG16
    side_maps: int = SIDE_MAPS
    # Classes of the network. WMH masks can also train an initial model with more classes.
    classes: tuple[str, ...] = CLASSES
    label_names: tuple[str, ...] = ()  # of the values in tissue.nii.gz; empty: WMH masks
    init: str = "imagenet"  # or "none" (random weights), or a model folder
    imagenet_weights: str = imagenet.DEFAULT
    imagenet_kind: imagenet.Kind | None = None  # of a weight file, if its values do not show it
    seed: int = 0
    held_out: float = 0.2  # fraction of the subjects, measured after the training
    folds: int = 0  # of the cross-validation; 0: none
    patience: int = 0  # validations without improvement before the training stops; 0: no validation
    heads: str | None = None  # folder of label maps for synthetic images; None: the MNI152 brain
    synthesis: SynthesisSettings = field(default_factory=SynthesisSettings)  # of synthetic images
    compiled: bool = False  # with torch.compile
    # For the recipe base:
    atlas: str | None = None  # folder of lesion masks in MNI space, for synthetic images
    unlabelled: str | None = None  # folder of scans that the teachers label
    sources: str | None = None  # table of the sources of all scans
    leave: tuple[str, ...] = ()  # excluded scans, people, sources and label maps
    teachers: tuple[str, ...] = ()  # model folders or files of weights
    processes: int = 1  # that make synthetic scans; their number does not change the weights

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
        """Raises LeukoError if two settings are incompatible."""
        recipe = self.recipe
        if self.folds == 1:
            raise LeukoError(
                "with --folds 1 no subject is left for training; give 2 or more, or 0 for none"
            )
        if self.patience and recipe.start_part:
            raise LeukoError(
                f"--patience does not work with the recipe {recipe.name}, which averages the final "
                "and the initial weights; remove it"
            )
        patience_steps = self.patience * recipe.validate_steps
        if patience_steps >= recipe.steps:
            raise LeukoError(
                f"{recipe.steps} steps are too few for --patience {self.patience}, with a "
                f"validation every {recipe.validate_steps} steps; remove it, or use --steps "
                f"{patience_steps + 1} or more"
            )
        if recipe.normalised and self.init != "none":
            raise LeukoError(
                f"the recipe {recipe.name} needs --init none, not {self.init}; use --recipe modern"
            )
        if recipe.mixture:
            self._require_mixture()
            return
        self._require_classes()
        if recipe.synthetic_part:
            self._require_synthesis()
        elif self.heads:
            raise LeukoError(
                f"--heads does not work with the recipe {recipe.name}, which uses no synthetic "
                "images; remove it, or use --recipe adapt"
            )

    def _require_mixture(self) -> None:
        if self.unlabelled and not self.teachers:
            raise LeukoError(
                "--unlabelled needs a model that labels these scans; add --teacher MODEL"
            )
        if self.folds or self.patience or self.held_out or self.label_names:
            raise LeukoError(
                f"the recipe {self.recipe.name} trains on all scans except those of --leave; "
                "remove --folds, --patience, --held-out and --classes"
            )
        if (self.classes, self.preparation) != (MADE, MIXED):
            raise LeukoError(
                f"the recipe {self.recipe.name} needs the classes {', '.join(MADE)} and the "
                f"channels {MIXED.channels}; found {', '.join(self.classes)} and "
                f"{self.preparation.channels}"
            )

    def _require_classes(self) -> None:
        if not self.label_names:
            if self.classes[-1] != WMH:
                raise LeukoError(
                    f"{self.init} cannot be trained on WMH masks, since it has no class {WMH}, "
                    f"only {', '.join(self.classes)}; give label maps and --classes"
                )
            return
        classes = self.labelling.classes
        for name in self.label_names:
            meant = name.casefold()
            if name != meant and meant in (BACKGROUND, WMH, UNKNOWN):
                raise LeukoError(f"--classes contains {name}; write {meant}, in lower case")
        if self.label_names[0] != BACKGROUND or len(classes) < 2:
            raise LeukoError(
                f"--classes is {','.join(self.label_names)}; expected {BACKGROUND} first and "
                "another class: the names of the values 0, 1, 2, ... in tissue.nii.gz"
            )
        if not all(name.isprintable() and name for name in classes):
            raise LeukoError("--classes contains an empty or unprintable name; correct it")
        if Tissue.RIM.label in classes and not are_rims(classes):
            raise LeukoError(
                "--classes contains rim (caps and rims of the ventricles); expected also white, "
                f"and rim and {WMH} as the last two classes; found {', '.join(classes)}"
            )
        if classes != self.classes:
            raise LeukoError(
                f"--classes gives {', '.join(classes)}, but {self.init} has the classes "
                f"{', '.join(self.classes)}; give those, or use --init imagenet or none"
            )
        if self.folds or self.recipe.synthetic_part:
            raise LeukoError(
                "cross-validation and the recipe adapt work only with WMH masks; with --classes, "
                "remove --folds and use --recipe modern or xu2017"
            )

    def _require_synthesis(self) -> None:
        preparation = self.preparation
        shown = (preparation.channels, preparation.pixel_mm)
        if shown != (SYNTHETIC.channels, SYNTHETIC.pixel_mm):
            raise LeukoError(
                f"the recipe {self.recipe.name} uses synthetic images, which have the channels "
                f"{SYNTHETIC.channels} at {SYNTHETIC.pixel_mm:g} mm, but the model needs "
                f"{preparation.channels} at {preparation.pixel_mm:g} mm; use --recipe modern"
            )
        if self.classes not in TAUGHT:
            raise LeukoError(
                f"the recipe {self.recipe.name} uses synthetic images of the classes "
                f"{', '.join(MADE)}, but the model has {', '.join(self.classes)}; use --recipe "
                "modern"
            )
