"""Tissue classes: their numbers in label maps and their names in model cards."""

from collections.abc import Sequence
from enum import IntEnum

from leuko.io.lookup_tables import BLUE, ORANGE, PINK, SKY, Label


class Tissue(IntEnum):
    """Tissue classes, numbered as in synthetic label maps and in models that know all of them.

    A model may lack some: its card names the classes that it has, in the order of their numbers.
    """

    BACKGROUND = 0
    CSF = 1
    VENTRICLE = 2
    GREY = 3
    WHITE = 4
    RIM = 5  # normal caps and rims of the ventricles, bright on FLAIR
    WMH = 6

    @property
    def label(self) -> str:
        """The name in model cards and tables."""
        return self.name.lower()


CLASSES = tuple(tissue.label for tissue in Tissue)
COLOURS = {
    Tissue.CSF: BLUE,
    Tissue.VENTRICLE: SKY,
    Tissue.GREY: "#999999",
    Tissue.WHITE: "#f0f0f0",
    Tissue.RIM: PINK,
    Tissue.WMH: ORANGE,
}
RIM_LABELS = [Label(1, "caps and rims", COLOURS[Tissue.RIM])]
CLASSES_WITHOUT_RIM = tuple(tissue.label for tissue in Tissue if tissue != Tissue.RIM)


def labels_of(classes: Sequence[str]) -> list[Label]:
    """The labels of a map of a model's classes; the first class is the background."""
    tissues = {tissue.label: tissue for tissue in Tissue}
    return [
        Label(number, name, COLOURS[tissues[name]]) for number, name in enumerate(classes) if number
    ]


def numbers_in(classes: Sequence[str]) -> list[int]:
    """The number that each `Tissue` has among the classes of a model, which may lack some.

    A model without the class rim counts rims as white matter; other tissues that it lacks are
    background.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    numbers.setdefault(Tissue.RIM.label, numbers.get(Tissue.WHITE.label, 0))
    return [numbers.get(name, 0) for name in CLASSES]
