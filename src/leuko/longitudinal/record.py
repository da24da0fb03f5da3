"""The record of a comparison, `compare.json`. Volumes are in mL."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from leuko.io.files import write_json
from leuko.io.provenance import Finding, Rims
from leuko.io.record import ModelRecord, ScanRecord, as_json


@dataclass(frozen=True, kw_only=True)
class TimeRecord:
    """One time, as it was segmented."""

    path: str  # of the folder
    volume_ml: float
    rims: Rims | None
    wmh_ml: float | None
    rims_ml: float | None
    wmh_and_rims_ml: float | None
    model: ModelRecord
    threshold: float
    flair: ScanRecord


@dataclass(frozen=True, kw_only=True)
class Times:
    """Both times."""

    baseline: TimeRecord
    followup: TimeRecord


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Shift of the lesion borders by chance, and their surface: the noise floor is the product."""

    border_mm: float
    surface_mm2: float


@dataclass(frozen=True, kw_only=True)
class HalfwayRecord:
    """The registration of the two scans, with matrices (4, 4) in world coordinates."""

    moved_mm: float
    sharpness: float
    baseline_to_halfway: tuple[tuple[float, ...], ...]
    followup_to_halfway: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class ComparisonRecord:
    """The content of `compare.json`."""

    command: Literal["compare"] = "compare"
    versions: Mapping[str, str]
    inputs: Times
    findings: tuple[Finding, ...]
    checks: tuple[str, ...]
    baseline_ml: float
    followup_ml: float
    change_ml: float
    change_percent: float | None  # None if the baseline is 0
    floor_ml: float
    is_beyond_floor: bool
    floor: Floor
    lesions: Mapping[str, int]  # by state
    lesion_change_ml: Mapping[str, float]  # by state
    alignment: HalfwayRecord
    seconds: Mapping[str, float]
    label: str | None = None  # of the person, as given

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        write_json(path, as_json(self))
