"""The result of a segmentation: its images, its numbers, and the files it is saved as."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass, fields, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from leuko.io import inputs, lookup_tables, nifti
from leuko.io.files import delete, image_stem, sha256, staged
from leuko.io.inputs import Scan
from leuko.io.outputs import (
    DICOM_FILE,
    ENTROPY_FILE,
    FILES,
    KEY_SLICES_FILE,
    LESION_TABLE_FILE,
    LESIONS_FILE,
    LOOKUP_FOLDER,
    MASK_FILE,
    PICTURE_FILE,
    PROBABILITY_FILE,
    RECORD_FILE,
    REGION_NAMES_FILE,
    REGIONS_FILE,
    REPORT_FILE,
    RIMS_FILE,
    T1_FILE,
    TISSUE_FILE,
    TRANSFORM_FILE,
    Tell,
    refuse_foreign_files,
    side_output,
    write_table,
)
from leuko.io.provenance import RIMS_LIE, Finding, Rims, Stopwatch, ranked, tell, versions
from leuko.io.record import Edited, Excluded, ModelRecord, OutsideBrain, RunRecord, SettingsRecord
from leuko.io.tissue import RIM_LABELS, Tissue, labels_of
from leuko.lesions.brain import Outside
from leuko.lesions.extras import Extras
from leuko.lesions.location import REGION_LABELS
from leuko.lesions.measure import Analysis, Lesion, lesion_labels
from leuko.model.calibration import Judgement, doubtful, interval_text
from leuko.model.card import ModelCard
from leuko.preprocessing.registration import Alignment
from leuko.preprocessing.slices import Pair
from leuko.report.html import picture, text
from leuko.report.pictures import as_jpeg
from leuko.report.single import key_slices, report, sheet
from leuko.report.viewer import RIM_KIND, Pane
from leuko.volume import Volume, resample_onto, rounded_down

LESION_COLUMNS = tuple(field.name for field in fields(Lesion))

# Precision of the stored maps; noise in further digits would make the files many times larger.
PROBABILITY_STEP, ENTROPY_STEP = 1e-4, 1e-3


@dataclass(frozen=True, eq=False)
class Maps:
    """The images of a segmentation, on the FLAIR's grid as it is stored."""

    mask: Volume  # uint8, 1 = WMH, with caps and rims if the convention is "include"
    probability: Volume  # float32, 0 to 1
    entropy: Volume  # float32, bits; of the calibrated probability if the model has a calibration
    tissue: Volume | None  # uint8, the model's classes; None if they are only background and WMH
    rims: Volume | None  # bool, normal caps and rims of the ventricles; None: left out or unknown


@dataclass(frozen=True, eq=False)
class Source:
    """The inputs of a segmentation: scans, model and settings."""

    command: Literal["segment", "measure"]
    scans: Mapping[str, Scan]  # flair; t1 and mask if they were given
    pair: Pair  # as given to the model
    t1: Volume | None  # aligned
    card: ModelCard
    model_folder: Path | None
    settings: SettingsRecord


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The result of `leuko.segment`; volumes are in mL.

    Images are nibabel images on the FLAIR's grid. `analysis` holds lesions and regions,
    `findings` the findings of the quality checks, `seconds` the time of each stage.
    """

    maps: Maps
    convention: Rims | None  # of the mask; None if it was given or the model knows no rims
    volume_ml: float
    analysis: Analysis
    judgement: Judgement | None  # None without a calibration for these settings
    excluded: Excluded | None
    outside: Outside | None  # lesions that were removed; None if the tissues are unknown
    alignment: Alignment | None  # of the T1; None if the model used no T1
    findings: list[Finding]
    checks: list[str]  # names of the checks that were done
    seconds: dict[str, float]
    source: Source
    extras: Extras  # outputs that only some settings ask for

    @property
    def mask(self) -> nifti.InMemory:
        """The mask, uint8: 1 = WMH, with caps and rims if they count as WMH."""
        return nifti.as_image(self.maps.mask)

    @property
    def probability(self) -> nifti.InMemory:
        """The probability of WMH, 0 to 1, float32."""
        return nifti.as_image(self.maps.probability)

    @property
    def tissue(self) -> nifti.InMemory | None:
        """The model's classes, uint8; None if they are only background and WMH."""
        return None if self.maps.tissue is None else nifti.as_image(self.maps.tissue)

    @property
    def rims(self) -> nifti.InMemory | None:
        """1 = normal caps and rims of the ventricles, uint8; None if they were left out. With a
        given mask they are those that the model finds outside it."""
        rims = self.maps.rims
        return None if rims is None else nifti.as_image(rims.with_data(rims.data.astype(np.uint8)))

    @property
    def filled_t1(self) -> nifti.InMemory | None:
        """The T1 as it is stored, with WMH filled from normal white matter; None unless the
        settings ask for it (`fill`)."""
        filled = self.extras.filled
        return None if filled is None else nifti.opened(filled)

    @property
    def volume_interval_ml(self) -> tuple[float, float] | None:
        """The 90 % interval of the volume; None without a calibration for these settings."""
        interval = self.judgement.volume_interval_ml if self.judgement else None
        return None if interval is None else (float(interval[0]), float(interval[1]))

    @property
    def lesions(self) -> Any:
        """One row for each lesion, the largest first, as in `lesions.tsv`: a pandas DataFrame
        where pandas is installed, else a list of `Lesion`."""
        lesions = self.analysis.lesions
        if find_spec("pandas") is None:
            return lesions
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in lesions], columns=[*LESION_COLUMNS])

    @property
    def rims_ml(self) -> float | None:
        """Volume of caps and rims; None if they were left out or are unknown."""
        return None if self.maps.rims is None else self.maps.rims.ml(self.maps.rims.data)

    @property
    def wmh_ml(self) -> float | None:
        """Volume of WMH without caps and rims; None if that is unknown, as for a given mask."""
        if self.convention is None:
            return None
        return self.volume_ml - (self.rims_ml or 0) * (self.convention == "include")

    @property
    def wmh_and_rims_ml(self) -> float | None:
        """Volume of WMH with caps and rims; None if that is unknown, as for a given mask."""
        if self.wmh_ml is None or self.rims_ml is None:
            return None
        return self.wmh_ml + self.rims_ml

    @property
    def doubtful_slices(self) -> tuple[int, ...]:
        """Up to two slices, from 1, where the mask is least certain; see `doubtful`."""
        return doubtful(self.maps.entropy.canonical())

    def save(
        self,
        out: str | Path,
        *,
        label: str | None = None,
        edited: Edited | None = None,
        save_intermediate: bool = False,
    ) -> None:
        """Write the files of `leuko segment` into a folder.

        `label`: a name for the scan, shown in the report. `edited`: who corrected the mask.
        `save_intermediate`: also write the T1 on the FLAIR's grid and its transform. Files are
        written atomically; on an error the folder keeps its earlier files. If only a file other
        than the mask cannot be written, a finding names it. Raises LeukoError if the folder cannot
        be written, or holds files of the same names that Leuko did not write.
        """
        out, source, watch = Path(out), self.source, Stopwatch(self.seconds)
        require_free(out, *source.scans.values(), command=source.command)
        tell_of = partial(tell, self.findings)
        with staged(out) as scratch:
            with watch.stage("write"):
                _write(scratch, self, tell_of, edited)
                if save_intermediate:
                    _write_intermediate(scratch, self, tell_of)
            digest = sha256(scratch / MASK_FILE)
            record = self.record(mask_sha256=digest, label=label, edited=edited)
            with watch.stage("report"):
                _write_report(scratch, self, record, tell_of)
            # The report may have added a finding, and took time.
            record = replace(record, findings=ranked(self.findings), seconds=self.seconds)
            record.write(scratch / RECORD_FILE)
            written = {path.name for path in scratch.iterdir()}
        drop_older(out, written)

    def record(
        self,
        *,
        mask_sha256: str | None = None,
        label: str | None = None,
        edited: Edited | None = None,
    ) -> RunRecord:
        """The content of `run.json`: scans, model, settings, versions and the numbers.

        docs/record.md explains the fields. `mask_sha256` is the hash of the mask once it is saved,
        `label` a name for the scan, `edited` who corrected the mask.
        """
        source, regions, alignment = self.source, self.analysis.regions, self.alignment
        interval, icv_ml = self.volume_interval_ml, self.analysis.intracranial_ml
        return RunRecord(
            command=source.command,
            mask_sha256=mask_sha256,
            versions=versions(),
            inputs=inputs.as_record(source.scans),
            model=ModelRecord(
                name=source.card.name,
                path=str(source.model_folder) if source.model_folder else None,
                weights_sha256=source.card.weights_sha256,
            ),
            settings=source.settings,
            findings=ranked(self.findings),
            checks=tuple(self.checks),
            volume_ml=round(self.volume_ml, 4),
            volume_interval_ml=interval and (round(interval[0], 3), round(interval[1], 3)),
            quality=self.judgement.quality_as_record() if self.judgement else None,
            rims=self.convention,
            wmh_ml=_rounded(self.wmh_ml),
            rims_ml=_rounded(self.rims_ml),
            wmh_and_rims_ml=_rounded(self.wmh_and_rims_ml),
            lesions=len(self.analysis.lesions),
            intracranial_ml=icv_ml and round(icv_ml, 2),
            volume_percent_icv=round(100 * self.volume_ml / icv_ml, 4) if icv_ml else None,
            outside_brain=OutsideBrain(
                lesions=self.outside.lesions,
                wmh_ml=round(self.maps.mask.ml(self.outside.voxels), 4),
            )
            if self.outside
            else None,
            excluded_ml=self.excluded,
            tissue_ml=_tissues_ml(self),
            regions=regions.as_record() if regions else None,
            alignment=alignment.as_record() if alignment else None,
            seconds=dict(self.seconds),
            label=label,
            edited=edited,
            **self.extras.as_record(),
            doubtful_slices=self.doubtful_slices,
        )

    def __repr__(self) -> str:
        lesions, regions = self.analysis.lesions, self.analysis.regions
        lines = [f"{self.source.scans['flair'].volume.name}, model {self.source.card.name}"]
        between = self.volume_interval_ml
        interval = f" (90 % interval {interval_text(between)})" if between else ""
        lines.append(f"  WMH {self.volume_ml:.2f} mL{interval} in {len(lesions)} lesions")
        if self.rims_ml is not None:
            lines.append(f"  caps and rims {self.rims_ml:.2f} mL, {RIMS_LIE[self.convention]}")
        if regions is not None:
            lines.append(f"  {regions.as_text()}")
        lines += [f"  {finding.level}: {finding.text}" for finding in self.findings]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The numbers and one picture, for notebooks."""
        jpeg = as_jpeg(sheet(self.record(), _pane(self)))
        return f"<pre>{text(repr(self))}</pre>{picture(jpeg, 'Slices with outlines')}"


def _write(folder: Path, result: Segmentation, tell_of: Tell, edited: Edited | None) -> None:
    """Write images and tables; if a file other than the mask cannot be written, add a finding."""
    maps, analysis = result.maps, result.analysis
    nifti.write(folder / MASK_FILE, maps.mask)
    stored = maps.mask.with_canonical
    images: dict[str, Callable[[], Volume]] = {
        PROBABILITY_FILE: lambda: rounded_down(maps.probability, PROBABILITY_STEP),
        ENTROPY_FILE: lambda: rounded_down(maps.entropy, ENTROPY_STEP),
        LESIONS_FILE: lambda: stored(analysis.numbers),
    }
    rims, tissue, regions = maps.rims, maps.tissue, analysis.region_map
    if rims is not None and result.convention != "include":
        images[RIMS_FILE] = lambda: rims.with_data(rims.data.astype(np.uint8))
    if tissue is not None:
        images[TISSUE_FILE] = lambda: tissue
    if regions is not None:
        images[REGIONS_FILE] = lambda: stored(regions)
        with side_output(folder, REGION_NAMES_FILE, tell_of):
            labels = lookup_tables.rows(REGION_LABELS)
            write_table(folder / REGION_NAMES_FILE, lookup_tables.COLUMNS, labels)
    for name, make in images.items():
        with side_output(folder, name, tell_of):
            nifti.write(folder / name, make())
    with side_output(folder, LESION_TABLE_FILE, tell_of):
        write_table(folder / LESION_TABLE_FILE, LESION_COLUMNS, map(astuple, analysis.lesions))
    with side_output(folder, LOOKUP_FOLDER, tell_of):
        named = {
            LESIONS_FILE: lesion_labels(analysis.lesions),
            RIMS_FILE: RIM_LABELS,
            TISSUE_FILE: labels_of(result.source.card.classes),
            REGIONS_FILE: REGION_LABELS,
        }
        for name in images.keys() & named:
            lookup_tables.write(folder / LOOKUP_FOLDER, image_stem(Path(name)), named[name])
    result.extras.write(folder, maps.mask, tell_of)
    with side_output(folder, DICOM_FILE, tell_of):
        inputs.write_dicom(folder / DICOM_FILE, maps.mask, result.source.scans, edited)


def _write_intermediate(folder: Path, result: Segmentation, tell_of: Tell) -> None:
    t1, alignment = result.source.t1, result.alignment
    if t1 is None or alignment is None:
        return
    with side_output(folder, T1_FILE, tell_of):
        nifti.write(folder / T1_FILE, resample_onto(t1, result.maps.mask))
    with side_output(folder, TRANSFORM_FILE, tell_of):
        alignment.write(folder / TRANSFORM_FILE)


def _pane(result: Segmentation) -> Pane:
    """The scans with lesions and rims, for pages and pictures."""
    analysis, pair, rims = result.analysis, result.source.pair, result.maps.rims
    kinds = analysis.numbers > 0 if analysis.region_map is None else analysis.region_map
    kinds = kinds.astype(np.uint8)
    if rims is not None and result.convention != "include":
        kinds[rims.canonical().data] = RIM_KIND
    has_t1 = pair.given_t1 is not None
    return Pane(
        title="FLAIR and T1" if has_t1 else "FLAIR",
        grid=result.maps.mask.canonical(),
        images={"FLAIR": pair.flair} | ({"T1": pair.t1} if has_t1 else {}),
        ids=analysis.numbers,
        kinds=kinds,
        probability=result.maps.probability.canonical().data,
    )


def _write_report(folder: Path, result: Segmentation, record: RunRecord, tell_of: Tell) -> None:
    """Write the report and its pictures; if one cannot be written, add a finding."""
    pane = _pane(result)
    jpeg = b""
    with side_output(folder, PICTURE_FILE, tell_of):
        overview = sheet(record, pane)
        jpeg = as_jpeg(overview, quality=70)
        # Level 3 takes half the time of Pillow's default and gives a smaller file.
        overview.save(folder / PICTURE_FILE, compress_level=3)
    with side_output(folder, KEY_SLICES_FILE, tell_of):
        (folder / KEY_SLICES_FILE).write_bytes(as_jpeg(key_slices(record, pane)))
    with side_output(folder, REPORT_FILE, tell_of):
        page = report(record, result.analysis.lesions, pane, jpeg)
        (folder / REPORT_FILE).write_text(page, encoding="utf-8", errors="backslashreplace")


def require_free(out: Path, *scans: Path | Scan | None, command: str = "segment") -> None:
    """Raises LeukoError if `out` holds the scans, or a file with a name in `FILES` that `command`
    did not write, or cannot be written."""
    refuse_foreign_files(out, *scans, files=FILES, record=RECORD_FILE, command=command)


def drop_older(out: Path, written: set[str]) -> None:
    """Delete the result files of an earlier run in `out` that are not among those `written` now."""
    for name in set(FILES) - written:
        delete(out / name)


def _tissues_ml(result: Segmentation) -> dict[str, float | None] | None:
    """Volume by class, in the order of the class numbers; the volume of rims that are not mapped is
    None. None if the model does not know tissues."""
    tissue, card = result.maps.tissue, result.source.card
    if tissue is None:
        return None
    counts = np.bincount(tissue.data.ravel(), minlength=len(card.classes))
    volumes: dict[str, float | None] = {
        name: round(float(count) * tissue.voxel_mm3 / 1000, 3)
        for name, count in list(zip(card.classes, counts, strict=True))[1:]
    }
    if card.knows_rims and result.convention in ("include", "exclude"):
        volumes[Tissue.RIM.label] = None
    return volumes


def _rounded(ml: float | None) -> float | None:
    return None if ml is None else round(ml, 4)
