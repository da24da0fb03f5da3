"""The main job, told in order: two scans and a model become a mask, a probability map, numbers."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from leuko import guards, inputs, nifti, outputs, runtime, weights
from leuko.align import FAR_MM, LOST_MM, Alignment, Mode, align
from leuko.analysis import Case, analyse
from leuko.channels import Pair
from leuko.errors import LeukoError
from leuko.files import sha256, staged, write_json
from leuko.inputs import Scan
from leuko.itk import without_bias
from leuko.outputs import Excluded, Segmentation
from leuko.predict import predict_pair, shifted, to_mask, to_tissue
from leuko.record import Stopwatch, kept_warnings, versions
from leuko.regions import Rule
from leuko.uncertainty import Calibration, Judgement, calibrated, entropy, judge
from leuko.volume import Array, Orientation, Volume, require_same_grid

STEP_LOG_ODDS = 1.0  # between the mask and its stricter and laxer neighbours

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
    rule: Rule = "voxel10",
    save_intermediate: bool = False,
    strict: bool = False,
    device: runtime.Device = "cpu",
    threads: int | None = None,
) -> Segmentation:
    """Segment one brain and write what was found into `out`, as `outputs.FILES` names it.

    Images are on the grid of the FLAIR as it was stored. A model that knows tissues gives them,
    and regions by `rule`; a FLAIR from DICOM gives a DICOM segmentation; `save_intermediate` the
    T1 on the FLAIR's grid and the transform that brought it there. `model` is a folder or a name;
    `threshold` and `smallest_lesion_mm3` default to the model's own. In `exclude`, a mask on that
    grid, nothing is WMH. Raises LeukoError, also when the T1 does not come to lie on the FLAIR and,
    if `strict`, for what does not look like the FLAIR of a head; `out` then holds what it held
    before.
    """
    outputs.refuse_foreign_files(out, flair, t1)
    watch = Stopwatch()
    threads = threads or runtime.available_cpus()
    with staged(out) as scratch, kept_warnings() as warnings:
        with watch.stage("load model"):
            folder = weights.find(str(model))
            loaded = runtime.load(folder, device=device, threads=threads)
        card = loaded.card
        card.require_wmh()
        limits = card.limits(threshold, smallest_lesion_mm3)
        own_limits = limits == (card.threshold, card.smallest_lesion_mm3)
        with watch.stage("read"):
            flair_source, t1_source = _opened(flair), _opened(t1) if t1 else None
            warnings[:0] = flair_source.warnings
            inputs.require_pair(flair_source, t1_source)
            outside = _outside(exclude, flair_source.volume) if exclude else None
        flair_scan, t1_scan = flair_source.volume, t1_source.volume if t1_source else None
        moved = None
        if bias_correction:
            with watch.stage("correct bias"):
                flair_scan = without_bias(flair_scan, threads=threads)
                t1_scan = t1_scan and without_bias(t1_scan, threads=threads)
        if t1_scan is not None and card.preparation.uses_t1:
            with watch.stage("align"):
                moved = _alignment(flair_scan, t1_scan, alignment, threads)
                t1_scan = moved.apply(t1_scan)
        with watch.stage("prepare"):
            pair = Pair.of(flair_scan, t1_scan, card.preparation)
        probabilities = predict_pair(pair, loaded, watch)
        probability = probabilities[-1]
        masks, excluded = _drawn(flair_scan.with_data(probability), limits, outside)
        mask = masks[0]
        tissue = to_tissue(probabilities, mask, flair_scan) if len(card.classes) > 2 else None
        with watch.stage("analyse"):
            seen_tissue = tissue if card.classes == guards.TISSUES else None
            case = _case(flair_source.volume, pair, seen_tissue, probability, masks)
            is_flair = _guarded(case, strict=strict)
            analysis = analyse(case, rule=rule, threads=threads)
            if not is_flair:
                analysis = replace(analysis, fazekas=None)
            warm = calibrated(probability, card.calibration.temperature if card.calibration else 1)
            seen = flair_scan.with_data(warm if outside is None else warm * outside)
            judgement = _judged(seen, mask, card.calibration if own_limits and is_flair else None)
        result = Segmentation(
            mask=flair_scan.with_data(mask.astype(np.uint8)),
            probability=flair_scan.with_data(probability),
            entropy=flair_scan.with_data(entropy(warm)),
            tissue=tissue,
            volume_ml=flair_scan.ml(mask),
            analysis=analysis,
            judgement=judgement,
            excluded=excluded,
            alignment=moved,
            warnings=warnings,
            seconds=watch.seconds,
        )
        with watch.stage("write"):
            outputs.write(scratch, result, flair_source, t1_scan if save_intermediate else None)
        about = {
            "command": "segment",
            "mask_sha256": sha256(scratch / outputs.MASK_FILE),
            "versions": versions(),
            "inputs": inputs.as_record(flair=flair_source, t1=t1_source),
            "model": {
                "name": card.name,
                "path": str(folder),
                "weights_sha256": card.weights_sha256,
            },
            "settings": {
                "threshold": limits[0],
                "smallest_lesion_mm3": limits[1],
                "alignment": alignment,
                "bias_correction": bias_correction,
                "exclude": exclude and inputs.as_file(exclude),
                "rule": rule,
                "strict": strict,
                "device": device,
            },
        }
        record = outputs.as_record(result, card, about)
        with watch.stage("report"):
            outputs.write_report(scratch, result, pair, record)
        write_json(scratch / outputs.RECORD_FILE, record)
        written = {path.name for path in scratch.iterdir()}
    outputs.drop_older(out, written)
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


def _drawn(
    probability: Volume, limits: tuple[float, float], outside: Array | None
) -> tuple[list[Array], Excluded | None]:
    """The mask, a timid and a bold one, as bool; and what was taken out where WMH may not be."""
    threshold, smallest_mm3 = limits
    masks = [
        to_mask(
            probability.data,
            shifted(threshold, step),
            smallest_mm3=smallest_mm3,
            voxel_mm3=probability.voxel_mm3,
        )
        for step in (0, STEP_LOG_ODDS, -STEP_LOG_ODDS)
    ]
    if outside is None:
        return masks, None
    excluded = Excluded(
        volume_ml=probability.ml(~outside), wmh_ml=probability.ml(masks[0] & ~outside)
    )
    return [mask & outside for mask in masks], excluded


def _case(
    flair: Volume, pair: Pair, tissue: Volume | None, probability: Array, masks: list[Array]
) -> Case:
    """A segmented scan with its axes running R, A, S."""
    turned = Orientation.of(flair.affine).apply
    return Case(
        flair.canonical(),
        pair.t1 if pair.t1.any() else None,
        tissue.canonical() if tissue is not None else None,
        turned(probability),
        *map(turned, masks),
    )


def _judged(calibrated: Volume, mask: Array, calibration: Calibration | None) -> Judgement | None:
    if calibration is None:
        return None
    return judge(calibration, calibrated.data, mask, voxel_ml=calibrated.voxel_mm3 / 1000)


def _guarded(case: Case, *, strict: bool) -> bool:
    """Say what speaks against a result, where the model's tissues can tell; whether it is of a
    FLAIR. Raises LeukoError, if `strict`, where it is of no FLAIR of a head."""
    if case.tissue is None:
        return True
    seen = guards.Case(case.flair, case.t1, case.tissue.data)
    wrong = guards.wrong_scan(seen) if strict else None
    if wrong is not None:
        raise LeukoError(wrong)
    for warning in guards.warnings(seen):
        log.warning("%s", warning)
    return guards.looks_like_flair(seen)


def _alignment(flair: Volume, t1: Volume, mode: Mode, threads: int) -> Alignment:
    """Raises LeukoError when the T1 was to be brought to the FLAIR and that failed."""
    found = align(flair, t1, mode=mode, threads=threads)
    if found.is_sure:
        return found
    seen = found.doubt()
    if seen is None:
        way = f"{found.off_mm:.1f} mm away" if found.off_mm < FAR_MM else "elsewhere"
        seen = f"a better place is {way}, expected {LOST_MM:.1f} mm at most"
    evidence = f"{t1.name} does not lie on {flair.name} ({seen})"
    if mode == "never":
        log.warning("%s: are both of one person, not swapped, and aligned?", evidence)
        return found
    raise LeukoError(
        f"{evidence}: are both of one person, and not swapped? Give the FLAIR alone, or --align "
        "never if you know that they are aligned"
    )
