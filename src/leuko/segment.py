"""Segment one brain, or measure a mask of it, without writing files."""

import logging
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from leuko.errors import LeukoError
from leuko.io import inputs
from leuko.io.inputs import Image, Scan
from leuko.io.provenance import Finding, Rims, Stopwatch, is_useless, kept_findings, tell
from leuko.io.record import Excluded, FileRecord, SettingsRecord
from leuko.lesions import atlas, quality_checks
from leuko.lesions.atlas import Atlas
from leuko.lesions.brain import Outside
from leuko.lesions.delineation import Delineation, seen, tissue_map
from leuko.lesions.drawing import Checked, draw, tissue_with_wmh
from leuko.lesions.extras import Asked, Brain, make_extras
from leuko.lesions.given_mask import around, on_flair
from leuko.lesions.location import Rule
from leuko.lesions.measure import MaskedScan, analyse
from leuko.lesions.mni import Place
from leuko.model import runtime, weights
from leuko.model.calibration import Judgement, calibrated, entropy, judge
from leuko.model.card import Limits, ModelCard
from leuko.model.inference import Inference, infer
from leuko.model.runtime import Model, load_model
from leuko.preprocessing.registration import Mode
from leuko.results import Maps, Segmentation, Source
from leuko.volume import Array, Volume, require_same_grid

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SegmentSettings:
    """How brains are segmented: the options of `leuko segment`."""

    model: str = weights.DEFAULT  # name or folder
    threshold: float | None = None  # smallest probability of WMH, 0 to 1; None: the model's
    smallest_lesion_mm3: float | None = None  # None: the model's
    # Normal caps and rims of the ventricles: "separate", beside the mask; "include", counted as
    # WMH; "exclude", left out.
    rims: Rims = "separate"
    # Registration of the T1 to the FLAIR: "auto", if needed; "always"; "never".
    alignment: Mode = "auto"
    # Definition of periventricular: "voxel10", voxels up to 10 mm from the lateral ventricles;
    # "shiva2", lesions within 2 mm of them; "contiguity", lesions that touch them; "mcdonald2017",
    # as shiva2, and other lesions within 2 mm of the cortex are juxtacortical.
    rule: Rule = "voxel10"
    bias_correction: bool = False  # N4, of both scans
    lesion_labels: tuple[int, ...] = ()  # labels of a given mask that are WMH; for `measure`
    fill: bool = False  # also fill the lesions of the T1 with normal white matter
    save_mni: bool = False  # also bring mask, probability and FLAIR to MNI152 space
    strict: bool = False  # refuse a scan that does not look like a FLAIR of a head
    device: runtime.Device = "cpu"  # or "cuda", "mps"
    threads: int | None = None  # None: all processors that this process may use
    # A label image in MNI152 space, and a TSV with the columns index and name.
    atlas: str | Path | None = None
    atlas_names: str | Path | None = None

    def __post_init__(self) -> None:
        if any(label < 1 for label in self.lesion_labels):
            given = ", ".join(map(str, self.lesion_labels))
            raise LeukoError(
                f"--lesion-label {given}: labels of WMH are 1 or more; 0 is background"
            )

    def read_atlas(self) -> Atlas | None:
        """The atlas of the settings, if any. Raises LeukoError as `atlas.read`, and for names
        without an atlas."""
        if self.atlas is None and self.atlas_names is not None:
            raise LeukoError("--atlas-names needs --atlas")
        names = None if self.atlas_names is None else Path(self.atlas_names)
        return None if self.atlas is None else atlas.read(Path(self.atlas), names)


DEFAULTS = SegmentSettings()


def segment(
    flair: Image,
    t1: Image | None = None,
    *,
    model: Model | None = None,
    exclude: Image | None = None,
    settings: SegmentSettings = DEFAULTS,
) -> Segmentation:
    """Segment the white matter hyperintensities (WMH) of one brain; nothing is written.

    `flair` and `t1`, two scans of the same brain, are paths of images, folders of one DICOM series,
    or 3-D nibabel images. `model` comes from `load_model`; by default the model of the settings is
    loaded. Voxels above 0 in `exclude`, a mask on the grid of the FLAIR, are never WMH. Lesions
    outside the brain are removed.

    Raises LeukoError if an image cannot be read or used, if the T1 cannot be registered to the
    FLAIR, if `rims="include"` and the model has no class for rims, or if the settings are `strict`
    and the scan does not look like a FLAIR of a head.

    >>> import leuko
    >>> found = leuko.segment("FLAIR.nii.gz", t1="T1.nii.gz")
    >>> found.volume_ml > 0
    True
    >>> found.mask.shape == found.probability.shape
    True
    """
    with kept_findings() as findings:
        work = _Work.begin(flair, t1, model, settings, findings)
        card = work.card
        if settings.rims == "include":
            card.require_rims()
        excluding, allowed = None, None
        if exclude is not None:
            with work.watch.stage("read"):
                excluding = inputs.opened_mask(exclude)
                allowed = _outside(excluding.volume, work.flair.volume)
        found = work.infer()
        drawing = draw(
            found.prediction,
            found.pair,
            card,
            work.limits,
            flair=work.canonical_flair,
            rims=settings.rims,
            allowed=allowed,
            watch=work.watch,
        )
        work.tell(drawing.checked)
        judgement = None
        # A calibration holds for WMH without rims, at the model's own limits.
        is_judged = work.limits == card.limits() and settings.rims != "include"
        if card.calibration is not None and is_judged and not work.is_doubted:
            with work.watch.stage("analyse"):
                wmh, mask = found.prediction.wmh, drawing.masks.mask
                sign = seen(wmh, drawing.anywhere, mask, found.flair, card, allowed=allowed)
                judgement = judge(card.calibration, sign)
        return work.result(
            found,
            drawing.masks,
            drawing.checked.place,
            judgement=judgement,
            excluded=drawing.excluded,
            outside=drawing.outside,
            convention=settings.rims if card.knows_rims else None,
            exclude=excluding.as_record() if excluding else None,
        )


def measure(
    mask: Image,
    flair: Image,
    t1: Image | None = None,
    *,
    model: Model | None = None,
    settings: SegmentSettings = DEFAULTS,
) -> Segmentation:
    """Measure the WMH mask of a reader or of another tool.

    `mask` holds one label, a probability (WMH from 0.5), or several labels of which
    `settings.lesion_labels` are WMH. A mask on the grid of the T1 moves with it when the T1 is
    registered; any mask on another grid is resampled to the FLAIR's. Regions and the intracranial
    volume come from the tissues that the model finds, and caps and rims are those that it finds
    outside the mask. The other arguments are those of `segment`; the settings of thresholds and
    rims do not apply, and the volume has no interval.

    Raises LeukoError as `segment` does, and if the mask has several labels of which none was
    chosen, or does not meet the FLAIR.

    >>> import leuko
    >>> leuko.measure("wmh.nii.gz", "FLAIR.nii.gz", "T1.nii.gz").volume_interval_ml is None
    True
    """
    with kept_findings() as findings:
        work = _Work.begin(flair, t1, model, settings, findings)
        with work.watch.stage("read"):
            reference = inputs.opened_mask(mask, labels=settings.lesion_labels)
        found = work.infer()
        moving = work.t1.volume if work.t1 else None
        told = partial(tell, findings)
        drawn, checked = around(
            on_flair(reference.volume, work.canonical_flair, moving, found.alignment, told),
            found.prediction,
            found.pair,
            work.card,
            flair=work.canonical_flair,
            watch=work.watch,
        )
        work.tell(checked)
        return work.result(found, drawn, checked.place, mask=reference)


@dataclass(frozen=True, eq=False)
class _Work:
    """The segmentation of one brain in progress."""

    flair: Scan
    t1: Scan | None
    model: Model
    settings: SegmentSettings
    limits: Limits
    findings: list[Finding]
    checks: list[str]
    watch: Stopwatch
    atlas: Atlas | None

    @classmethod
    def begin(
        cls,
        flair: Image,
        t1: Image | None,
        model: Model | None,
        settings: SegmentSettings,
        findings: list[Finding],
    ) -> "_Work":
        """Read the scans and load the model. Raises LeukoError if the settings do not fit it."""
        watch = Stopwatch()
        with watch.stage("load model"):
            model = model or load_model(
                settings.model, device=settings.device, threads=settings.threads
            )
        model.card.require_wmh()
        limits = model.card.limits(settings.threshold, settings.smallest_lesion_mm3)
        with watch.stage("read"):
            scan, t1_scan = inputs.opened(flair), None if t1 is None else inputs.opened(t1)
            findings[:0] = scan.findings
            if settings.fill and (t1 is None or not model.card.preparation.uses_t1):
                raise LeukoError(
                    "--fill fills the lesions of a T1; give one, and a model that uses it"
                )
            inputs.require_pair(scan, t1_scan)
            regions = settings.read_atlas()
        return cls(scan, t1_scan, model, settings, limits, findings, [], watch, regions)

    @property
    def card(self) -> ModelCard:
        return self.model.card

    @property
    def threads(self) -> int:
        return self.settings.threads or runtime.available_cpus()

    @property
    def is_doubted(self) -> bool:
        """Whether the result should not be used, or the scan may not be a FLAIR of a head."""
        return is_useless(self.findings) or quality_checks.is_doubted(self.findings)

    @cached_property
    def canonical_flair(self) -> Volume:
        """The FLAIR as it was read, with its axes in RAS order."""
        return self.flair.volume.canonical()

    def infer(self) -> Inference:
        """Register the T1 and run the model."""
        found = infer(
            self.canonical_flair,
            self.t1.volume if self.t1 else None,
            self.model,
            alignment=self.settings.alignment,
            bias_correction=self.settings.bias_correction,
            threads=self.threads,
            findings=self.findings,
            watch=self.watch,
        )
        if found.alignment is not None:
            self.checks.append("T1 aligned to FLAIR")
        return found

    def tell(self, checked: Checked) -> None:
        """Add the findings of the quality checks to those of the run.

        Raises LeukoError if the settings are strict and the scan does not look like a FLAIR of a
        head.
        """
        wrong = quality_checks.wrong_scan(checked.findings)
        if self.settings.strict and wrong:
            raise LeukoError(wrong)
        for finding in checked.findings:
            tell(self.findings, finding)
        self.checks.extend(checked.checks)

    def result(
        self,
        found: Inference,
        drawn: Delineation,
        place: Place | None,
        *,
        judgement: Judgement | None = None,
        excluded: Excluded | None = None,
        outside: Outside | None = None,
        convention: Rims | None = None,
        exclude: FileRecord | None = None,
        mask: Scan | None = None,
    ) -> Segmentation:
        """The segmentation, with its measures; `mask` is the input of `measure`."""
        card, grid = self.card, self.flair.volume
        with self.watch.stage("analyse"):
            case = MaskedScan(
                self.canonical_flair,
                found.pair.given_t1,
                tissue_with_wmh(drawn, card),
                drawn.probability,
                drawn.mask,
                drawn.liberal,
                # A mask that was made elsewhere does not change the volume of the head.
                None if drawn.own is None else (drawn.anatomy.data > 0) | drawn.own,
            )
            analysis = analyse(case, place=place, rule=self.settings.rule, threads=self.threads)
            temperature = card.calibration.temperature if card.calibration else 1
            uncertain = entropy(calibrated(drawn.probability, temperature))
        rims = None if convention == "exclude" else drawn.rims
        beside = None if convention == "include" else rims
        has_tissues = len(card.classes) > 2
        tissue = tissue_map(drawn.anatomy, drawn.mask, beside, card) if has_tissues else None
        scans = {"flair": self.flair, "t1": self.t1, "mask": mask}
        return Segmentation(
            maps=Maps(
                mask=grid.with_canonical(drawn.mask.astype(np.uint8)),
                probability=grid.with_canonical(drawn.probability),
                entropy=grid.with_canonical(uncertain),
                tissue=None if tissue is None else grid.with_canonical(tissue.data),
                rims=None if rims is None else grid.with_canonical(rims),
            ),
            convention=convention,
            volume_ml=grid.ml(drawn.mask),
            analysis=analysis,
            judgement=judgement,
            excluded=excluded,
            outside=outside,
            alignment=found.alignment,
            findings=self.findings,
            checks=self.checks,
            seconds=self.watch.seconds,
            source=Source(
                command="segment" if mask is None else "measure",
                scans={name: scan for name, scan in scans.items() if scan},
                pair=found.pair,
                t1=found.t1,
                card=card,
                model_folder=self.model.folder,
                settings=self.used_settings(exclude),
            ),
            extras=make_extras(
                Asked(self.settings.fill, self.settings.save_mni, self.atlas),
                Brain(self.canonical_flair, case.tissue, place, drawn, analysis.numbers),
                card,
                t1=self.t1,
                alignment=found.alignment,
                tell=partial(tell, self.findings),
                watch=self.watch,
            ),
        )

    def used_settings(self, exclude: FileRecord | None) -> SettingsRecord:
        """The settings for the record, with the limits of the model where none were given."""
        settings, limits = self.settings, self.limits
        return SettingsRecord(
            threshold=limits.threshold,
            lesion_threshold=limits.lesion_threshold,
            smallest_lesion_mm3=limits.smallest_mm3,
            exclude=exclude,
            rims=settings.rims,
            alignment=settings.alignment,
            bias_correction=settings.bias_correction,
            lesion_labels=settings.lesion_labels or None,
            rule=settings.rule,
            strict=settings.strict,
            device=settings.device,
            fill=settings.fill or None,
            save_mni=settings.save_mni or None,
            atlas=_as_record(settings.atlas),
            atlas_names=_as_record(settings.atlas_names),
        )


def _as_record(path: str | Path | None) -> FileRecord | None:
    return None if path is None else inputs.file_record(Path(path))


def _outside(mask: Volume, flair: Volume) -> Array:
    """Voxels outside an exclusion mask, bool (X, Y, Z), axes in RAS order.

    Raises LeukoError for a mask on another grid.
    """
    require_same_grid(mask, flair)
    if not mask.data.any():
        log.warning("%s excludes nothing: it is empty", mask.name)
    outside: Array = ~mask.canonical().data
    return outside
