"""Reference labels: file names and the meaning of label values."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leuko.evaluation.metrics import OTHER_PATHOLOGY
from leuko.volume import Array

LABEL_NAMES = ("wmh", "lesions")
LABEL_VALUES = (0, 1, OTHER_PATHOLOGY)
BACKGROUND, WMH, UNKNOWN = "background", "wmh", "unknown"  # names of labels
IGNORED = 255  # voxels of unknown class, excluded from loss and measures


@dataclass(frozen=True)
class Labelling:
    """File names of label images, and the names of their values 0, 1, 2, ...

    Values with the same name are one class; those named `UNKNOWN` are excluded from loss and
    measures.
    """

    files: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def values(self) -> range:
        return range(len(self.names))

    @property
    def classes(self) -> tuple[str, ...]:
        """Each name once, without `UNKNOWN`, in order of the values, but WMH last."""
        others = dict.fromkeys(name for name in self.names if name not in (WMH, UNKNOWN))
        return (*others, WMH) if WMH in self.names else tuple(others)

    def classified(self, values: Array) -> Array:
        """The class number, or `IGNORED`, of each label value; uint8."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        table = np.array([numbers.get(name, IGNORED) for name in self.names], dtype=np.uint8)
        return table[values.astype(np.intp)]


# Labels of the WMH challenge; 2 is other pathology.
WMH_LABELS = Labelling(LABEL_NAMES, (BACKGROUND, WMH, UNKNOWN))


def tissue_labels(names: Sequence[str]) -> Labelling:
    """Labels of tissue maps, `tissue.nii.gz`, as `leuko segment` and `leuko synth` write them."""
    return Labelling(("tissue",), tuple(names))
