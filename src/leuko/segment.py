"""Segment one brain, told in order: two scans and a model become a mask, a map and numbers."""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from leuko import results
from leuko.errors import LeukoError
from leuko.io import inputs, nifti
from leuko.io.files import sha256, staged, write_json
from leuko.io.inputs import Scan
from leuko.io.provenance import Finding, Level, Stopwatch, is_useless, kept_findings, tell, versions
from leuko.lesions import quality_checks
from leuko.lesions.brain import Outside, brain_mask, find_outside
from leuko.lesions.delineation import Delineation, Rims, delineate, seen, tissue_map, with_rims
from leuko.lesions.location import Rule
from leuko.lesions.measure import Case, analyse
from leuko.lesions.mni import Place
from leuko.model import runtime, weights
from leuko.model.calibration import calibrated, entropy, judge
from leuko.model.card import ModelCard
from leuko.model.predict import predict_pair
from leuko.preprocessing.registration import Alignment, Mode, align
from leuko.preprocessing.simpleitk import without_bias
from leuko.preprocessing.slices import Pair
from leuko.results import Excluded, Segmentation
from leuko.volume import Array, Orientation, Volume, require_same_grid

MUCH_EXCLUDED = 0.5  # of the brain: no infarct or tumour is so large
MUCH_OUTSIDE_ML = 0.2  # outside the brain; less is common at the skull base

log = logging.getLogger(__name__)


def segment(
    flair: Path | Scan,
    t1: Path | Scan | None,
    out: Path,
    *,
    model: str | Path = weights.DEFAULT,
    threshold: float | None = None,
    smallest_lesion_mm3: float | None = None,
    alignment: Mode = "auto",
    bias_correction: bool = False,
    exclude: Path | None = None,
    rims: Rims = "separate",
    rule: Rule = "voxel10",
    save_intermediate: bool = False,
    strict: bool = False,
    device: runtime.Device = "cpu",
    threads: int | None = None,
) -> Segmentation:
    """Segment one brain and write what was found into `out`, as `results.FILES` names it.

    Images are on the grid of the FLAIR as it was stored. A model that knows tissues gives them,
    and regions by `rule`; a FLAIR from DICOM gives a DICOM segmentation; `save_intermediate` the
    T1 on the FLAIR's grid and the transform that brought it there. `model` is a folder or a name;
    `threshold` and `smallest_lesion_mm3` default to the model's own. In `exclude`, a mask on that
    grid, nothing is WMH. The normal caps and rims of the ventricles are written beside the mask
    (`rims="separate"`), counted as WMH ("include") or left out ("exclude"). Lesions and rims
    outside the brain are left out. A file that cannot be written is named in a finding; without its
    mask nothing is written. Raises LeukoError, also for `rims="include"` with a model that knows no
    rims, where the T1 could not be registered to the FLAIR and, if `strict`, for what does not look
    like the FLAIR of a head; `out` then holds what it held before.
    """
    results.refuse_foreign_files(out, flair, t1)
    watch = Stopwatch()
    threads = threads or runtime.available_cpus()
    with staged(out) as scratch, kept_findings() as findings:
        with watch.stage("load model"):
            folder = weights.find(str(model))
            loaded = runtime.load(folder, device=device, threads=threads)
        card = loaded.card
        card.require_wmh()
        if rims == "include":
            card.require_rims()
        limits = card.limits(threshold, smallest_lesion_mm3)
        with watch.stage("read"):
            flair_source, t1_source = _opened(flair), _opened(t1) if t1 else None
            findings[:0] = flair_source.findings
            inputs.require_pair(flair_source, t1_source)
            allowed = _outside(exclude, flair_source.volume) if exclude else None
        flair_scan, t1_scan = flair_source.volume, t1_source.volume if t1_source else None
        moved, checks = None, []
        if bias_correction:
            with watch.stage("correct bias"):
                flair_scan = without_bias(flair_scan, threads=threads)
                t1_scan = t1_scan and without_bias(t1_scan, threads=threads)
        if t1_scan is not None and card.preparation.uses_t1:
            with watch.stage("align"):
                moved = _alignment(flair_scan, t1_scan, alignment, threads, findings)
                checks.append("T1 aligned to FLAIR")
                t1_scan = moved.apply(t1_scan)
        with watch.stage("prepare"):
            pair = Pair.of(flair_scan, t1_scan, card.preparation)
        probabilities = predict_pair(pair, loaded, watch)
        with watch.stage("delineate"):
            apart: Rims = "exclude" if rims == "exclude" else "separate"
            drawn = delineate(probabilities, flair_scan, card, limits, rims=apart)
            drawn, excluded = _allowed(drawn, flair_scan, allowed, rims)
        anatomy = drawn.anatomy if len(card.classes) > 2 else None
        with watch.stage("analyse"):
            case = _case(flair_source.volume, pair, drawn, card)
            place, outside, found = None, None, drawn
            if anatomy is not None and case.tissue is not None:
                checks += _examined(case, case.tissue, findings, strict=strict)
                brain = brain_mask(anatomy.canonical())
                place = Place.of(case.tissue.with_data(case.tissue.data * brain), threads=threads)
                _tell_much_excluded(allowed, anatomy, findings)
                if not is_useless(findings):
                    drawn, outside = _within_brain(drawn, anatomy, brain, place, findings)
                    checks.append("lesions outside the brain")
            drawn_rims = drawn.rims
            if rims == "include":
                drawn = with_rims(drawn, probabilities)
            mask = drawn.mask
            case = _case(flair_source.volume, pair, drawn, card)
            analysis = analyse(case, place=place, rule=rule, threads=threads)
            warm = calibrated(
                drawn.probability, card.calibration.temperature if card.calibration else 1
            )
            # A calibration is of WMH alone.
            is_judged = (
                limits == card.limits()
                and rims != "include"
                and not (is_useless(findings) or quality_checks.is_doubted(findings))
            )
            judgement = None
            if card.calibration is not None and is_judged:
                sign = seen(probabilities[-1], found, mask, flair_scan, card, allowed=allowed)
                judgement = judge(card.calibration, sign)
        result = Segmentation(
            mask=flair_scan.with_data(mask.astype(np.uint8)),
            probability=flair_scan.with_data(drawn.probability),
            entropy=flair_scan.with_data(entropy(warm)),
            tissue=anatomy and tissue_map(anatomy, mask, drawn.rims, card),
            rims=None if drawn_rims is None else flair_scan.with_data(drawn_rims),
            convention=rims if card.knows_rims else None,
            volume_ml=flair_scan.ml(mask),
            analysis=analysis,
            judgement=judgement,
            excluded=excluded,
            outside=outside,
            alignment=moved,
            findings=findings,
            checks=checks,
            seconds=watch.seconds,
        )
        said = partial(tell, findings)
        with watch.stage("write"):
            results.write(
                scratch, result, flair_source, t1_scan if save_intermediate else None, said
            )
        about = {
            "command": "segment",
            "mask_sha256": sha256(scratch / results.MASK_FILE),
            "versions": versions(),
            "inputs": inputs.as_record(flair=flair_source, t1=t1_source),
            "model": {
                "name": card.name,
                "path": str(folder),
                "weights_sha256": card.weights_sha256,
            },
            "settings": {
                "threshold": limits.threshold,
                "lesion_threshold": limits.lesion_threshold,
                "smallest_lesion_mm3": limits.smallest_mm3,
                "rims": rims,
                "alignment": alignment,
                "bias_correction": bias_correction,
                "exclude": exclude and inputs.as_file(exclude),
                "rule": rule,
                "strict": strict,
                "device": device,
            },
        }
        record = results.as_record(result, card, about)
        with watch.stage("report"):
            results.write_report(scratch, result, pair, record, said)
        record["findings"] = results.findings_as_record(findings)  # the report may have failed
        write_json(scratch / results.RECORD_FILE, record)
        written = {path.name for path in scratch.iterdir()}
    results.drop_older(out, written)
    return result


def _opened(scan: Path | Scan) -> Scan:
    return scan if isinstance(scan, Scan) else inputs.read(scan)


def _outside(exclude: Path, flair: Volume) -> Array:
    """Where WMH may be, bool (X, Y, Z) as the FLAIR is stored. Raises LeukoError for a mask on
    another grid."""
    mask = nifti.read_mask(exclude)
    require_same_grid(mask, flair)
    if not mask.data.any():
        log.warning("%s excludes nothing: it is empty", exclude)
    outside: Array = ~Orientation.of(flair.affine).undo(mask.canonical().data)
    return outside


def _allowed(
    drawn: Delineation, flair: Volume, allowed: Array | None, rims: Rims
) -> tuple[Delineation, Excluded | None]:
    """What is drawn where WMH are allowed, and what was left out elsewhere."""
    if allowed is None:
        return drawn, None
    counts_rims = rims == "include" and drawn.rims is not None
    wmh = drawn.mask | drawn.rims if counts_rims else drawn.mask
    excluded = Excluded(volume_ml=flair.ml(~allowed), wmh_ml=flair.ml(wmh & ~allowed))
    kept = replace(
        drawn,
        mask=drawn.mask & allowed,
        liberal=drawn.liberal & allowed,
        rims=None if drawn.rims is None else drawn.rims & allowed,
    )
    return kept, excluded


def _case(flair: Volume, pair: Pair, drawn: Delineation, card: ModelCard) -> Case:
    """A segmented scan with its axes running R, A, S."""
    turned = Orientation.of(flair.affine).apply
    tissue = None
    if card.tissues == quality_checks.TISSUES:
        tissue = quality_checks.with_wmh(drawn.anatomy, drawn.mask).canonical()
    return Case(
        flair.canonical(),
        pair.t1 if pair.t1.any() else None,
        tissue,
        *map(turned, (drawn.probability, drawn.mask, drawn.liberal)),
    )


def _examined(case: Case, tissue: Volume, findings: list[Finding], *, strict: bool) -> list[str]:
    """Tell the findings of the automatic checks; returns which were done. Raises LeukoError, if
    `strict`, for evidence that this is not a FLAIR of a head."""
    found, checks = quality_checks.examine(quality_checks.Case(case.flair, case.t1, tissue.data))
    if strict and quality_checks.is_doubted(found):
        raise LeukoError(found[0].text)
    for finding in found:
        tell(findings, finding)
    return checks


def _tell_much_excluded(allowed: Array | None, anatomy: Volume, findings: list[Finding]) -> None:
    """Warn of an exclusion mask that holds most of the brain."""
    inside = anatomy.data > 0
    if allowed is not None and (inside & ~allowed).sum() > MUCH_EXCLUDED * inside.sum():
        part = 100 * (inside & ~allowed).sum() / inside.sum()
        text = f"the exclusion mask holds {part:.0f} % of the brain: is it a brain mask?"
        tell(findings, Finding("warning", "exclusion", text))


def _within_brain(
    drawn: Delineation,
    anatomy: Volume,
    brain: Array,
    place: Place | None,
    findings: list[Finding],
) -> tuple[Delineation, Outside]:
    """What is drawn without lesions and rims outside the brain (R, A, S); many lesions there are a
    warning."""
    grid, stored = anatomy.canonical(), Orientation.of(anatomy.affine)
    outside, liberal_outside = (
        find_outside(stored.apply(mask), brain, place, grid) for mask in (drawn.mask, drawn.liberal)
    )
    mask = drawn.mask & ~stored.undo(outside.voxels)
    liberal = mask | drawn.liberal & ~stored.undo(liberal_outside.voxels)
    rims = None if drawn.rims is None else drawn.rims & stored.undo(brain)
    volume_ml = grid.ml(outside.voxels)
    if volume_ml > MUCH_OUTSIDE_ML:
        text = (
            f"{outside.lesions} lesion{'s' * (outside.lesions != 1)} outside the brain, "
            f"{volume_ml:.2f} mL, removed; look at the mask near the edge of the brain"
        )
        tell(findings, Finding("warning", "outside-brain", text))
    return replace(drawn, mask=mask, liberal=liberal, rims=rims), outside


def _alignment(
    flair: Volume, t1: Volume, mode: Mode, threads: int, findings: list[Finding]
) -> Alignment:
    """Raises LeukoError when the T1 could not be registered to the FLAIR and `mode` asks for it."""
    found = align(flair, t1, mode=mode, threads=threads)
    doubt = found.doubt()
    if doubt is None:
        return found
    verb = "is not registered" if mode == "never" else "could not be registered"
    text = f"{t1.name} {verb} to {flair.name}: {doubt}; are both of one person, and not swapped?"
    if mode == "never":
        level: Level = "do not use" if found.is_hopeless else "warning"
        tell(findings, Finding(level, "alignment", text))
        return found
    raise LeukoError(
        f"{text} Give the FLAIR alone, or --align never if you know that they are aligned"
    )
