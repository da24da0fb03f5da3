"""The record of a comparison, `compare.json`. Volumes are in mL.

docs/record.md explains the fields.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from leuko.io.files import write_json
from leuko.io.provenance import Finding, Rims
from leuko.io.record import ModelRecord, ScanRecord, as_json

VERSION = 1  # increase it when a field is added, removed or changes its meaning


@dataclass(frozen=True, kw_only=True)
class VisitRecord:
    """One visit, as it was segmented or measured."""

    path: str  # of the folder, or of the record of BIDS derivatives
    mask_sha256: str | None
    volume_ml: float
    rims: Rims | None
    wmh_ml: float | None
    rims_ml: float | None
    wmh_and_rims_ml: float | None
    model: ModelRecord
    threshold: float
    flair: ScanRecord
    label: str | None = None  # of the visit, as given


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Shift of the lesion borders by chance, and their surface: the noise floor is the product."""

    border_mm: float
    surface_mm2: float


@dataclass(frozen=True, kw_only=True)
class MidspaceRecord:
    """The registration of the scans; matrices (4, 4) are in world coordinates."""

    registered_to: str  # the visit that all others were registered to
    moved_mm: Mapping[str, float]  # of the others
    sharpness: Mapping[str, float]
    to_midspace: Mapping[str, tuple[tuple[float, ...], ...]]


@dataclass(frozen=True, kw_only=True)
class ChangeRecord:
    """The change between two visits."""

    baseline_ml: float
    followup_ml: float
    change_ml: float
    change_percent: float | None  # None if the baseline is 0
    floor_ml: float
    is_beyond_floor: bool
    floor: Floor
    lesions: Mapping[str, int]  # by state
    lesion_change_ml: Mapping[str, float]  # by state
    events: Mapping[str, int]  # lesions that merged and that split


@dataclass(frozen=True, kw_only=True)
class IntervalRecord(ChangeRecord):
    """The change between two consecutive visits."""

    visits: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class ComparisonRecord(ChangeRecord):
    """The content of `compare.json`; the change is that from the first visit to the last."""

    record_version: int = VERSION
    command: Literal["compare"] = "compare"
    versions: Mapping[str, str]
    inputs: Mapping[str, VisitRecord]  # by visit, in order
    findings: tuple[Finding, ...]
    checks: tuple[str, ...]
    intervals: tuple[IntervalRecord, ...]
    alignment: MidspaceRecord
    seconds: Mapping[str, float]
    label: str | None = None  # of the person, as given

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        write_json(path, as_json(self))
