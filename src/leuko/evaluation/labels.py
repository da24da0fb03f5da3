"""Reference labels: how their files are named, and what their values mean."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leuko.evaluation.metrics import OTHER_PATHOLOGY
from leuko.volume import Array

LABEL_NAMES = ("wmh", "lesions")
LABEL_VALUES = (0, 1, OTHER_PATHOLOGY)
BACKGROUND, WMH, UNKNOWN = "background", "wmh", "unknown"  # names of labels
IGNORED = 255  # in slices: of unknown class, left out of the loss


@dataclass(frozen=True)
class Labelling:
    """What label files are called, and the names of their values 0, 1, 2, ...

    Values of one name are one class; those called `UNKNOWN` are left out of loss and measures.
    """

    files: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def values(self) -> range:
        return range(len(self.names))

    @property
    def classes(self) -> tuple[str, ...]:
        """Each name once, in order of the values, but WMH last."""
        others = dict.fromkeys(name for name in self.names if name not in (WMH, UNKNOWN))
        return (*others, WMH) if WMH in self.names else tuple(others)

    def classified(self, values: Array) -> Array:
        """The numbers of the classes, or `IGNORED`, of label values; uint8."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        table = np.array([numbers.get(name, IGNORED) for name in self.names], dtype=np.uint8)
        return table[values.astype(np.intp)]


# The challenge's: 2 is other pathology.
WMH_LABELS = Labelling(LABEL_NAMES, (BACKGROUND, WMH, UNKNOWN))


def tissue_labels(names: Sequence[str]) -> Labelling:
    """Label maps of several classes: `tissue.nii.gz`, as `leuko segment` and `synth` write it."""
    return Labelling(("tissue",), tuple(names))
