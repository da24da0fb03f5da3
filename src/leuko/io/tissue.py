"""Tissue classes: their numbers in label maps and their names in model cards."""

from collections.abc import Sequence
from enum import IntEnum


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
CLASSES_WITHOUT_RIM = tuple(tissue.label for tissue in Tissue if tissue != Tissue.RIM)


def numbers_in(classes: Sequence[str]) -> list[int]:
    """The number that each `Tissue` has among the classes of a model, which may lack some.

    A model without the class rim counts rims as white matter; other tissues that it lacks are
    background.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    numbers.setdefault(Tissue.RIM.label, numbers.get(Tissue.WHITE.label, 0))
    return [numbers.get(name, 0) for name in CLASSES]
