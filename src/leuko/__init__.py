"""Leuko finds white matter hyperintensities in brain MRI.

    import leuko
    found = leuko.segment("FLAIR.nii.gz", t1="T1.nii.gz")
    print(found.volume_ml)
    found.save("OUT")

Names are imported when they are first used, so that `import leuko` is quick.
"""

import importlib
import logging
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leuko.cohort.run import segment_cohort as segment_cohort
    from leuko.errors import LeukoError as LeukoError
    from leuko.evaluation.evaluate import evaluate as evaluate
    from leuko.longitudinal.compare import compare as compare
    from leuko.model.runtime import load_model as load_model
    from leuko.results import Segmentation as Segmentation
    from leuko.segment import SegmentSettings as SegmentSettings
    from leuko.segment import measure as measure
    from leuko.segment import segment as segment

    __version__: str

_PLACES = {
    "segment": "leuko.segment",
    "measure": "leuko.segment",
    "compare": "leuko.longitudinal.compare",
    "evaluate": "leuko.evaluation.evaluate",
    "segment_cohort": "leuko.cohort.run",
    "load_model": "leuko.model.runtime",
    "Segmentation": "leuko.results",
    "SegmentSettings": "leuko.segment",
    "LeukoError": "leuko.errors",
}
__all__ = [*_PLACES, "__version__"]  # noqa: PLE0604

# A library stays silent unless its user asks for its log.
logging.getLogger("leuko").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("leuko")
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'leuko' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps `leuko.segment` the function: importing the module of that name would replace it."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _PLACES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
