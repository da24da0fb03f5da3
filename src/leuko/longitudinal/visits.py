"""The visits of a comparison: results of Leuko, read from their files."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from leuko.cohort import derivatives
from leuko.cohort.files import Files
from leuko.errors import LeukoError
from leuko.io import inputs, nifti
from leuko.io.files import find_image
from leuko.io.inputs import Scan
from leuko.io.outputs import MASK_FILE, PROBABILITY_FILE, RECORD_FILE
from leuko.io.provenance import RIMS_ARE
from leuko.io.record import RunRecord
from leuko.segment import SegmentSettings, segment
from leuko.volume import Volume, require_same_grid

MEASURED_THRESHOLD = 0.5  # of a given mask, resampled: the border stays where it is


@dataclass(frozen=True, eq=False)
class Visit:
    """One visit: its record, FLAIR and WMH."""

    name: str  # in file names, tables and the record
    title: str  # for people
    files: Files
    record: RunRecord
    flair: Volume
    probability: Volume  # 0 where voxels above the threshold were removed; of a given mask 0 and 1
    flair_path: Path | None

    @property
    def is_measured(self) -> bool:
        """Whether its mask was given and not made by Leuko."""
        return self.record.command == "measure"

    @property
    def threshold(self) -> float:
        return MEASURED_THRESHOLD if self.is_measured else self.record.settings.threshold

    @property
    def smallest_mm3(self) -> float:
        return 0.0 if self.is_measured else self.record.settings.smallest_lesion_mm3


def find(path: Path) -> Files | None:
    """The result at a path: a folder of `leuko segment` or `leuko measure`, a record of BIDS
    derivatives, or the folder of one session or its anat. None if there is none.

    Raises LeukoError if there are several.
    """
    if path.name.endswith(derivatives.RECORD) and path.is_file():
        return Files.of_record(path)
    if (path / RECORD_FILE).is_file():
        return Files(path)
    records = sorted(
        record
        for folder in (path, path / "anat")
        for record in folder.glob(f"*_space-FLAIR_{derivatives.RECORD}")
    )
    if len(records) > 1:
        names = ", ".join(record.name for record in records)
        raise LeukoError(f"{path} holds several results; give one of the records {names}")
    return find(records[0]) if records else None


def find_or_segment(path: Path, out: Path, *, threads: int) -> Files:
    """The result at a path; a folder of scans is segmented into `out` first.

    Raises LeukoError if the path holds neither.
    """
    found = find(path)
    if found is not None:
        return found
    flair, t1 = (find_image(path, name) for name in ("FLAIR", "T1"))
    if flair is None:
        raise LeukoError(
            f"{path} holds neither {RECORD_FILE} of leuko segment, nor a result of leuko bids, nor "
            "FLAIR.nii.gz; give a folder with one of them"
        )
    segment(flair, t1, settings=SegmentSettings(threads=threads)).save(out)
    return Files(out)


def read(files: Files, name: str, title: str, moved: Sequence[Path]) -> Visit:
    """Read a visit; `moved` are FLAIRs that may not be where they were.

    Raises LeukoError if the result is incomplete or its FLAIR is not found.
    """
    record = RunRecord.read(files[RECORD_FILE])
    scan = _flair(files, record, moved)
    mask = nifti.read_mask(files[MASK_FILE])
    require_same_grid(mask, scan.volume)
    if record.command == "measure":
        kept = mask.with_data(mask.data.astype(np.float32))
    else:
        probability = nifti.read_probability(files[PROBABILITY_FILE])
        require_same_grid(probability, scan.volume)
        dropped = (probability.data >= record.settings.threshold) & ~mask.data
        kept = probability.with_data(np.where(dropped, 0, probability.data))
    named = replace(scan.volume, name=f"{title} ({scan.path})")  # all may be called FLAIR.nii.gz
    return Visit(name, title, files, record, named, kept, scan.path)


def require_used(moved: Sequence[Path], visits: Sequence[Visit]) -> None:
    """Raises LeukoError if a FLAIR in `moved` belongs to no visit."""
    for path in moved:
        if path not in [visit.flair_path for visit in visits]:
            raise LeukoError(
                f"{path} does not belong to any visit: its SHA-256 is in none of the records; give "
                "the FLAIRs that were segmented"
            )


def differences(visits: Sequence[Visit]) -> Iterator[str]:
    """Differences between the runs that may look like a change of the brain."""
    runs = "two runs" if len(visits) == 2 else f"{len(visits)} runs"
    methods = [_method(visit) for visit in visits]
    for name in methods[0]:
        values = [method.get(name) for method in methods]
        if None not in values and len(set(values)) > 1:
            yield (
                f"the {runs} differ in {name} ({', '.join(map(str, values))}), which may "
                "cause part of the change; segment all visits with the same settings"
            )


def twins(visits: Sequence[Visit]) -> Iterator[str]:
    """Visits that have the same scan as an earlier one."""
    seen: dict[str, str] = {}
    for visit in visits:
        other = seen.setdefault(visit.record.inputs.flair.sha256, visit.title)
        if other != visit.title:
            yield f"{other} and {visit.title} are the same scan; check the folders that were given"


def _method(visit: Visit) -> dict[str, Any]:
    record, settings = visit.record, visit.record.settings
    of_masks = {
        "model": f"{record.model.name} {record.model.weights_sha256[:12]}",
        "T1": "given" if record.inputs.t1 else "none",
        "threshold": settings.threshold,
        "caps and rims": RIMS_ARE[record.rims],
        "smallest lesion": settings.smallest_lesion_mm3,
    }
    return {
        "masks": "given" if visit.is_measured else "by Leuko",
        "version of Leuko": record.leuko_version,
        **({} if visit.is_measured else of_masks),
        "bias correction": settings.bias_correction,
        "exclusion": "a mask" if settings.exclude else "none",
    }


def _flair(files: Files, record: RunRecord, moved: Sequence[Path]) -> Scan:
    """The FLAIR of a result: one of `moved`, or the file in the record."""
    was = record.inputs.flair
    if was.path is None:
        raise LeukoError(
            f"{files} was made from a FLAIR in memory; save it as a file and segment that file"
        )
    for path in moved:
        with suppress(LeukoError):  # a folder of another visit has no series of that name
            scan = inputs.read(path, series=was.series)
            if scan.sha256() == was.sha256:
                return scan
    path = Path(was.path)
    if not path.exists():
        raise LeukoError(f"the FLAIR of {files} is not at {path}; give its path with --flair")
    return inputs.read_again(path, was, what="FLAIR", of=str(files), option="flair")
