"""The record of a run, `run.json`: its fields, and how it is written and read.

docs/record.md explains the fields. Volumes are in mL.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import msgspec

from leuko.errors import LeukoError
from leuko.io.files import read_json, write_json
from leuko.io.provenance import Finding, Rims, is_useless

VERSION = 1  # increase it when a field is added, removed or changes its meaning

Command = Literal["segment", "measure"]


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """A file as it was read."""

    path: str | None  # None: an image in memory
    sha256: str  # as `Scan.sha256`
    bytes: int | None = None  # None if the image is not one file
    modified_ns: int | None = None


@dataclass(frozen=True, kw_only=True)
class ScanRecord(FileRecord):
    """A scan as it was read."""

    series: str | None  # of DICOM
    spacing_mm: tuple[float, float, float] | None = None  # of voxels, along the stored axes
    slice_mm: float | None = None  # from slice to slice


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The images of a run."""

    flair: ScanRecord
    t1: ScanRecord | None = None
    mask: ScanRecord | None = None  # the mask that was measured


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """The model of a run."""

    name: str
    path: str | None
    weights_sha256: str


@dataclass(frozen=True, kw_only=True)
class SettingsRecord:
    """The settings of a run, with the limits of the model filled in."""

    threshold: float
    lesion_threshold: float
    smallest_lesion_mm3: float
    exclude: FileRecord | None
    rims: Rims
    alignment: str
    bias_correction: bool
    lesion_labels: tuple[int, ...] | None = None  # of a given mask
    rule: str
    strict: bool
    device: str
    fill: bool | None = None  # None: no
    save_mni: bool | None = None  # likewise
    atlas: FileRecord | None = None
    atlas_names: FileRecord | None = None


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The expected Dice of the mask."""

    predicted_dice: float
    interval: tuple[float, float]  # 90 %


@dataclass(frozen=True, kw_only=True)
class OutsideBrain:
    """Lesions that were removed because they lie outside the brain."""

    lesions: int
    wmh_ml: float


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """An exclusion mask, and the WMH that it removed."""

    volume_ml: float
    wmh_ml: float


@dataclass(frozen=True, kw_only=True)
class Bullseye:
    """WMH by depth and lobe."""

    shells: tuple[str, ...]
    sectors: tuple[str, ...]
    ml: tuple[tuple[float, ...], ...]  # by shell and sector


@dataclass(frozen=True, kw_only=True)
class RegionsRecord:
    """WMH by region."""

    rule: str
    rule_text: str
    periventricular_ml: float
    deep_ml: float
    infratentorial_ml: float
    confluent_ml: float
    left_ml: float | None
    right_ml: float | None
    bullseye: Bullseye | None
    juxtacortical_ml: float | None = None  # None: the rule has no such region


@dataclass(frozen=True, kw_only=True)
class AlignmentRecord:
    """The registration of the T1 to the FLAIR."""

    moved_mm: float
    off_mm: float | None
    sharpness: float
    mutual_information_before: float
    mutual_information: float
    flair_to_t1: tuple[tuple[float, ...], ...]  # (4, 4), world coordinates


@dataclass(frozen=True, kw_only=True)
class TemplateRecord:
    """The affine registration of the brain to MNI152 space, and how exact it is."""

    space: str  # the template's name in BIDS
    to_mni: tuple[tuple[float, ...], ...]  # (4, 4), world coordinates
    brain_mm: float
    ventricles_mm: float | None


@dataclass(frozen=True, kw_only=True)
class AtlasRegion:
    """WMH in one region of an atlas; the index 0 is what lies outside the atlas."""

    index: int
    name: str
    region_ml: float | None  # None: outside the atlas
    wmh_ml: float
    wmh_percent: float | None  # of the region
    lesions: int  # that reach into it


@dataclass(frozen=True, kw_only=True)
class AtlasRecord:
    """WMH by the regions of the user's atlas."""

    regions: tuple[AtlasRegion, ...]


@dataclass(frozen=True, kw_only=True)
class Edited:
    """A mask that a reader corrected."""

    editor: str
    saved: str  # date and time, UTC
    corrects: Literal["automatic", "given"] = "automatic"  # the mask before
    automatic_ml: float  # volume of the mask before
    added_ml: float
    removed_ml: float


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The content of `run.json`. None: the value does not apply or is not known.

    In the JSON, fields with the default None are left out while they are None.
    """

    record_version: int = VERSION
    command: Command
    mask_sha256: str | None  # None: the mask is not written yet
    versions: Mapping[str, str]
    inputs: Inputs
    model: ModelRecord
    settings: SettingsRecord
    findings: tuple[Finding, ...]
    checks: tuple[str, ...]
    volume_ml: float
    volume_interval_ml: tuple[float, float] | None  # 90 %
    quality: Quality | None
    rims: Rims | None  # None: the model does not know caps and rims, or a given mask
    wmh_ml: float | None
    rims_ml: float | None
    wmh_and_rims_ml: float | None
    lesions: int
    intracranial_ml: float | None
    volume_percent_icv: float | None
    outside_brain: OutsideBrain | None
    excluded_ml: Excluded | None
    tissue_ml: Mapping[str, float | None] | None
    regions: RegionsRecord | None
    alignment: AlignmentRecord | None
    seconds: Mapping[str, float]
    label: str | None = None  # of the scan, as given
    edited: Edited | None = None  # None: no reader corrected the mask
    template: TemplateRecord | None = None  # None: no output needs it
    atlas: AtlasRecord | None = None  # None: no atlas was given
    doubtful_slices: tuple[int, ...] | None = None  # where the mask is least certain, from 1

    @property
    def leuko_version(self) -> str:
        """The version of Leuko that wrote the record."""
        return self.versions.get("leuko", "n/a")

    @property
    def is_usable(self) -> bool:
        """Whether no check found a reason not to use the result."""
        return not is_useless(self.findings)

    @property
    def mask_origin(self) -> Literal["automatic", "given", "corrected"]:
        """Who made the mask: Leuko, a reader or another tool, or a reader who corrected one."""
        if self.edited is not None:
            return "corrected"
        return "automatic" if self.inputs.mask is None else "given"

    @property
    def has_rims_apart(self) -> bool:
        """Whether caps and rims are a mask of their own; those beside a given mask are."""
        return self.rims_ml is not None and self.rims != "include"

    @property
    def warnings(self) -> int:
        """The number of warnings."""
        return sum(finding.level == "warning" for finding in self.findings)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record. Raises LeukoError if `leuko segment` did not write it, if it is damaged,
        or if its version is not `VERSION`."""
        content = read_json(path, what="record")
        if content.get("command") not in get_args(Command):
            raise LeukoError(
                f"{path} was not written by leuko segment; give a folder that it wrote"
            )
        version = content.get("record_version")
        if isinstance(version, int) and version > VERSION:
            raise LeukoError(
                f"{path} was written by a newer Leuko: its record has version {version}, this "
                f"Leuko reads version {VERSION}; update Leuko, or segment its scans again"
            )
        if version != VERSION:
            raise LeukoError(f"{path} was written by an older Leuko; segment its scans again")
        try:
            return msgspec.convert(content, cls)
        except msgspec.ValidationError as error:
            raise LeukoError(f"{path} is damaged: {error}; segment its scans again") from error

    def write(self, path: Path) -> None:
        """Write the record as JSON."""
        write_json(path, as_json(self))


def as_json(value: Any) -> Any:
    """A record as JSON objects and arrays."""
    if is_dataclass(value):
        kept = ((field, getattr(value, field.name)) for field in fields(value))
        return {
            field.name: as_json(content)
            for field, content in kept
            if not (content is None and field.default is None)
        }
    if isinstance(value, Mapping):
        return {name: as_json(content) for name, content in value.items()}
    return [as_json(item) for item in value] if isinstance(value, tuple | list) else value


def writer(path: Path) -> str | None:
    """The command that wrote a record of any kind; None if the record names none. Raises LeukoError
    as `read_json` does."""
    command = read_json(path, what="record").get("command")
    return command if isinstance(command, str) else None
