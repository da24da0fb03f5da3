"""Compare two segmented time points of one brain: register them halfway, find the changes."""

import logging
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from leuko.errors import LeukoError
from leuko.io import inputs, nifti
from leuko.io.files import find_image, staged
from leuko.io.outputs import (
    MASK_FILE,
    PROBABILITY_FILE,
    RECORD_FILE,
    REPORT_FILE,
    refuse_foreign_files,
    side_output,
    write_table,
)
from leuko.io.provenance import (
    OUTPUT,
    RIMS_ARE,
    Finding,
    Stopwatch,
    kept_findings,
    ranked,
    tell,
    versions,
)
from leuko.io.record import RunRecord
from leuko.longitudinal.changes import BORDER_MM, Change, Changes, Time, find_changes
from leuko.longitudinal.midspace import Halfway, meet
from leuko.longitudinal.record import ComparisonRecord, Floor, HalfwayRecord, TimeRecord, Times
from leuko.longitudinal.report import change_report
from leuko.model.runtime import available_cpus
from leuko.preprocessing.slices import tissue_level
from leuko.segment import SegmentSettings, segment
from leuko.volume import Volume, require_same_grid

CHANGES_FILE, CHANGE_TABLE_FILE = "changes.nii.gz", "changes.tsv"
NUMBERS_FILE = "change_lesions.nii.gz"
FLAIR_FILES = ("flair_baseline.nii.gz", "flair_followup.nii.gz")
COMPARISON_FILE = "compare.json"
FILES = (CHANGES_FILE, CHANGE_TABLE_FILE, NUMBERS_FILE, *FLAIR_FILES, REPORT_FILE, COMPARISON_FILE)
TIMES = ("baseline", "followup")
BEYOND_VIEW = 0.02  # share of the WMH outside the other scan's field of view; more: a warning

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Run:
    """One time point, read from the files of `leuko segment`."""

    folder: Path
    record: RunRecord
    flair: Volume
    probability: Volume  # 0 where the run removed voxels above its threshold


@dataclass(frozen=True, eq=False)
class Comparison:
    """The result of `compare`; `seconds` are by stage, in order."""

    changes: Changes
    times: tuple[Time, Time]
    halfway: Halfway
    findings: list[Finding]  # including those of both runs
    seconds: dict[str, float]


def compare(
    baseline: str | Path,
    followup: str | Path,
    out: str | Path,
    *,
    baseline_flair: str | Path | None = None,
    followup_flair: str | Path | None = None,
    label: str | None = None,
    threads: int | None = None,
) -> Comparison:
    """Compare two time points of one brain and write the `FILES` of the comparison into `out`.

    `baseline` and `followup` are folders that `segment` wrote, or folders with FLAIR.nii.gz and
    perhaps T1.nii.gz, which are segmented into `out` first. `baseline_flair` and `followup_flair`
    give the path of a FLAIR that was moved since. `label` is a name that the report shows. Raises
    LeukoError if a folder cannot be used or the scans cannot be registered; `out` then keeps its
    earlier files and the new segmentations.

    >>> import leuko
    >>> found = leuko.compare("BASELINE", "FOLLOWUP", "OUT")
    >>> [lesion.state for lesion in found.changes.lesions if lesion.state == "new"]
    []
    """
    out, scanned = Path(out), (Path(baseline), Path(followup))
    flairs = [Path(flair) if flair else None for flair in (baseline_flair, followup_flair)]
    for folder in scanned:
        refuse_foreign_files(out, folder, files=FILES, record=COMPARISON_FILE, command="compare")
    watch = Stopwatch()
    threads = threads or available_cpus()
    with watch.stage("segment"):
        folders = [
            _segmented(folder, out / name, threads=threads)
            for folder, name in zip(scanned, TIMES, strict=True)
        ]
    with staged(out) as scratch, kept_findings() as findings:
        with watch.stage("read"):
            first, second = (
                _read(folder, flair) for folder, flair in zip(folders, flairs, strict=True)
            )
            for name, run in zip(TIMES, (first, second), strict=True):
                findings += [
                    replace(found, text=f"{name}: {found.text}")
                    for found in run.record.findings
                    if found.code != OUTPUT
                ]
            for difference in _differences(first.record, second.record):
                log.warning("%s", difference)
        with watch.stage("align"):
            halfway = _meet(first, second, threads=threads)
        with watch.stage("resample"):
            times = _times(first, second, halfway)
        with watch.stage("find changes"):
            changes = find_changes(
                *times,
                halfway.grid,
                smallest_mm3=max(
                    run.record.settings.smallest_lesion_mm3 for run in (first, second)
                ),
            )
        with watch.stage("write"):
            _write(scratch, changes, times, halfway)
        result = Comparison(changes, times, halfway, findings, watch.seconds)
        record = _record(result, first, second, label=label)
        with (
            watch.stage("report"),
            side_output(scratch, REPORT_FILE, partial(tell, findings)),
        ):
            html = change_report(record, changes, times, halfway.grid)
            (scratch / REPORT_FILE).write_text(html, encoding="utf-8", errors="backslashreplace")
        # The report may have added a finding, and took time.
        record = replace(record, findings=ranked(findings), seconds=watch.seconds)
        record.write(scratch / COMPARISON_FILE)
    return result


def _segmented(folder: Path, out: Path, *, threads: int) -> Path:
    """The folder of a run of `segment`; a folder of scans is segmented into `out` first."""
    if (folder / RECORD_FILE).is_file():
        return folder
    flair, t1 = (find_image(folder, name) for name in ("FLAIR", "T1"))
    if flair is None:
        raise LeukoError(
            f"{folder} holds neither {RECORD_FILE} of leuko segment nor FLAIR.nii.gz; give a "
            "folder with one of them"
        )
    segment(flair, t1, settings=SegmentSettings(threads=threads)).save(out)
    return out


def _read(folder: Path, flair: Path | None) -> Run:
    """Read a run. Raises LeukoError if it is incomplete or `flair` is not the segmented FLAIR."""
    record = RunRecord.read(folder / RECORD_FILE)
    if record.command != "segment":
        raise LeukoError(
            f"{folder / RECORD_FILE} records a measured mask, not a segmentation; give a folder "
            "that leuko segment wrote"
        )
    was = record.inputs.flair
    if was.path is None:
        raise LeukoError(
            f"{folder} was made from a FLAIR in memory; save it as a file and segment that file"
        )
    path = flair or Path(was.path)
    if not path.exists():
        raise LeukoError(
            f"the FLAIR of {folder} is not at {path}; give its path with --baseline-flair or "
            "--followup-flair"
        )
    scan = inputs.read(path, series=was.series)
    if scan.sha256() != was.sha256:
        raise LeukoError(
            f"{path} is not the FLAIR that {folder} was made from: its SHA-256 differs; give that "
            "FLAIR with --baseline-flair or --followup-flair, or segment again"
        )
    probability = nifti.read_probability(folder / PROBABILITY_FILE)
    mask = nifti.read_mask(folder / MASK_FILE)
    for image in (probability, mask):
        require_same_grid(image, scan.volume)
    dropped = (probability.data >= record.settings.threshold) & ~mask.data
    kept = probability.with_data(np.where(dropped, 0, probability.data))
    named = replace(scan.volume, name=str(path))  # both files may be called FLAIR.nii.gz
    return Run(folder, record, named, kept)


def _differences(first: RunRecord, second: RunRecord) -> Iterator[str]:
    """Differences between the two runs that may look like a change of the brain."""
    before, after = _method(first), _method(second)
    for name in before:
        if before[name] != after[name]:
            yield (
                f"the two runs differ in {name} ({before[name]}, {after[name]}), which may "
                "cause part of the change; segment both times with the same settings"
            )


def _method(record: RunRecord) -> dict[str, Any]:
    settings = record.settings
    return {
        "model": f"{record.model.name} {record.model.weights_sha256[:12]}",
        "T1": "given" if record.inputs.t1 else "none",
        "version of Leuko": record.leuko_version,
        "threshold": settings.threshold,
        "caps and rims": RIMS_ARE[record.rims],
        "smallest lesion": settings.smallest_lesion_mm3,
        "bias correction": settings.bias_correction,
        "exclusion": "a mask" if settings.exclude else "none",
    }


def _meet(first: Run, second: Run, *, threads: int) -> Halfway:
    """Register in the order of the hashes, so that swapped times have the same halfway space."""
    if first.record.inputs.flair.sha256 <= second.record.inputs.flair.sha256:
        return meet(first.flair, second.flair, threads=threads)
    return meet(second.flair, first.flair, threads=threads).reversed()


def _times(first: Run, second: Run, halfway: Halfway) -> tuple[Time, Time]:
    runs = first, second
    seen = halfway.grid.data
    flairs = halfway.bring([_scaled(run.flair) for run in runs])
    probabilities = halfway.bring([run.probability for run in runs])
    times = []
    for run, flair, probability in zip(runs, flairs, probabilities, strict=True):
        mask = probability >= run.record.settings.threshold
        unseen = float((~seen)[mask].mean()) if mask.any() else 0.0
        if unseen > BEYOND_VIEW:
            log.warning(
                "%.0f %% of the WMH of %s lie outside the field of view of the other scan and are "
                "not compared",
                100 * unseen,
                run.folder,
            )
        times.append(Time(mask & seen, probability, flair))
    return times[0], times[1]


def _scaled(flair: Volume) -> Volume:
    """The FLAIR scaled to tissue at 100, float32."""
    return flair.with_data((flair.data * (100 / tissue_level(flair))).astype(np.float32))


def _write(folder: Path, changes: Changes, times: tuple[Time, Time], halfway: Halfway) -> None:
    grid = halfway.grid
    for name, time in zip(FLAIR_FILES, times, strict=True):
        nifti.write(folder / name, grid.with_data(time.flair))
    nifti.write(folder / CHANGES_FILE, grid.with_data(changes.states))
    nifti.write(folder / NUMBERS_FILE, grid.with_data(changes.numbers))
    columns = [field.name for field in fields(Change)]
    write_table(folder / CHANGE_TABLE_FILE, columns, map(astuple, changes.lesions))


def _record(result: Comparison, first: Run, second: Run, *, label: str | None) -> ComparisonRecord:
    changes, halfway = result.changes, result.halfway
    runs = dict(zip(TIMES, (first, second), strict=True))
    ways = [tuple(map(tuple, way.round(6).tolist())) for way in halfway.ways]
    return ComparisonRecord(
        versions=versions(),
        inputs=Times(baseline=_time_record(first), followup=_time_record(second)),
        findings=ranked(result.findings),
        checks=(
            *(f"{name}: {check}" for name, run in runs.items() for check in run.record.checks),
            "registration of the two scans",
            "same model and settings",
        ),
        baseline_ml=round(changes.baseline_ml, 4),
        followup_ml=round(changes.followup_ml, 4),
        change_ml=round(changes.change_ml, 4),
        change_percent=round(changes.change_percent, 3) if changes.baseline_ml else None,
        floor_ml=round(changes.floor_ml, 4),
        is_beyond_floor=changes.is_beyond_floor,
        floor=Floor(border_mm=BORDER_MM, surface_mm2=round(changes.surface_mm2, 1)),
        lesions=changes.counts,
        lesion_change_ml={state: round(ml, 4) for state, ml in changes.change_by_state.items()},
        alignment=HalfwayRecord(
            moved_mm=round(halfway.alignment.moved_mm, 3),
            sharpness=round(halfway.alignment.sharpness, 4),
            baseline_to_halfway=ways[0],
            followup_to_halfway=ways[1],
        ),
        seconds=dict(result.seconds),
        label=label,
    )


def _time_record(run: Run) -> TimeRecord:
    record = run.record
    return TimeRecord(
        path=str(run.folder),
        volume_ml=record.volume_ml,
        rims=record.rims,
        wmh_ml=record.wmh_ml,
        rims_ml=record.rims_ml,
        wmh_and_rims_ml=record.wmh_and_rims_ml,
        model=record.model,
        threshold=record.settings.threshold,
        flair=record.inputs.flair,
    )
