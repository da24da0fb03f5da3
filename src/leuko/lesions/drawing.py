"""Masks of one brain: drawn, checked, restricted to the brain, without excluded voxels.

Array axes run R, A, S.
"""

from dataclasses import dataclass, replace

from leuko.io.provenance import Finding, Rims, Stopwatch, is_useless
from leuko.io.record import Excluded
from leuko.io.tissue import CLASSES_WITHOUT_RIM
from leuko.lesions import quality_checks
from leuko.lesions.brain import Outside, brain_mask, within_brain
from leuko.lesions.delineation import Delineation, delineate, with_rims
from leuko.lesions.mni import Place
from leuko.model.card import Limits, ModelCard
from leuko.model.predict import Prediction
from leuko.preprocessing.slices import Pair
from leuko.volume import Array, Volume

MUCH_EXCLUDED = 0.5  # of the brain: no infarct or tumour is so large
MUCH_OUTSIDE_ML = 0.2  # outside the brain; less is common at the skull base


@dataclass(frozen=True, eq=False)
class Checked:
    """Results of the quality checks; empty if the model does not label all tissues."""

    brain: Array | None = None  # brain mask, bool (X, Y, Z)
    place: Place | None = None  # of the brain in the template; None if it was not found
    findings: tuple[Finding, ...] = ()
    checks: tuple[str, ...] = ()  # titles of the checks that were done


@dataclass(frozen=True, eq=False)
class Drawing:
    """The masks of one scan and the results of its quality checks."""

    masks: Delineation
    anywhere: Delineation  # with lesions outside the brain, without caps and rims in the mask
    checked: Checked
    outside: Outside | None  # lesions that were removed; None if the brain was not found
    excluded: Excluded | None  # None without an exclusion mask


def draw(
    prediction: Prediction,
    pair: Pair,
    card: ModelCard,
    limits: Limits | None = None,
    *,
    flair: Volume | None = None,
    rims: Rims = "separate",
    allowed: Array | None = None,
    watch: Stopwatch | None = None,
) -> Drawing:
    """Masks from a model's prediction, by default at the model's own limits.

    The quality checks examine `flair`, by default that of `pair`, which may be corrected for bias.
    WMH and rims are kept only where `allowed` (X, Y, Z) is True and, unless the result must not be
    used, only within the brain. `rims="include"` adds caps and rims to the
    mask; `masks.rims` holds them by every convention. Seconds are added to `watch`.
    """
    watch = watch or Stopwatch()
    with watch.stage("delineate"):
        drawn = delineate(prediction, pair.scan, card, limits)
        excluded = None
        if allowed is not None:
            drawn, excluded = _without_excluded(drawn, allowed, rims=rims)
    with watch.stage("check"):
        checked = check(drawn, pair, card, flair=flair)
        findings = list(checked.findings)
        kept, outside = drawn, None
        if checked.brain is not None:
            if allowed is not None:
                findings += _much_excluded(allowed, drawn.anatomy)
            if not is_useless(findings):
                kept, outside = within_brain(drawn, checked.brain, checked.place)
                advice = "removed; check the mask near the edge of the brain"
                findings += much_outside(outside, drawn.anatomy, advice)
                checked = replace(checked, checks=(*checked.checks, "lesions outside the brain"))
        masks = kept
        if rims == "include":
            masks = replace(with_rims(kept, prediction), rims=kept.rims)
    return Drawing(masks, drawn, replace(checked, findings=tuple(findings)), outside, excluded)


def check(
    drawn: Delineation,
    pair: Pair,
    card: ModelCard,
    *,
    flair: Volume | None = None,
) -> Checked:
    """The quality checks of a delineated scan, its brain mask and place; arguments as in `draw`."""
    tissue = tissue_with_wmh(drawn, card)
    if tissue is None:
        return Checked()
    case = quality_checks.CheckedScan(flair or pair.scan, pair.given_t1, tissue.data)
    findings, checks = quality_checks.examine(case)
    brain = brain_mask(drawn.anatomy)
    place = Place.of(tissue.with_data(tissue.data * brain))
    return Checked(brain, place, tuple(findings), tuple(checks))


def tissue_with_wmh(drawn: Delineation, card: ModelCard) -> Volume | None:
    """The tissues with WMH drawn in; None if the model lacks some."""
    if card.tissues != CLASSES_WITHOUT_RIM:
        return None
    return quality_checks.with_wmh(drawn.anatomy, drawn.mask)


def _without_excluded(
    drawn: Delineation, allowed: Array, *, rims: Rims
) -> tuple[Delineation, Excluded]:
    """The masks without excluded voxels, and the volume of WMH that was removed."""
    counts_rims = rims == "include" and drawn.rims is not None
    wmh, grid = drawn.mask | drawn.rims if counts_rims else drawn.mask, drawn.anatomy
    kept = replace(
        drawn,
        mask=drawn.mask & allowed,
        liberal=drawn.liberal & allowed,
        rims=None if drawn.rims is None else drawn.rims & allowed,
    )
    return kept, Excluded(volume_ml=grid.ml(~allowed), wmh_ml=grid.ml(wmh & ~allowed))


def _much_excluded(allowed: Array, anatomy: Volume) -> list[Finding]:
    """A warning about an exclusion mask that holds most of the brain."""
    inside = anatomy.data > 0
    excluded, brain = (inside & ~allowed).sum(), inside.sum()
    if excluded <= MUCH_EXCLUDED * brain:
        return []
    part = 100 * excluded / brain
    text = f"the exclusion mask covers {part:.0f} % of the brain; is it a brain mask?"
    return [Finding("warning", "exclusion", text)]


def much_outside(outside: Outside, grid: Volume, advice: str) -> list[Finding]:
    """A warning about many lesions outside the brain."""
    volume_ml = grid.ml(outside.voxels)
    if volume_ml <= MUCH_OUTSIDE_ML:
        return []
    lesions = f"{outside.lesions} lesion{'s' * (outside.lesions != 1)}"
    verb = "was" if outside.lesions == 1 else "were"
    text = f"{lesions} outside the brain ({volume_ml:.2f} mL) {verb} {advice}"
    return [Finding("warning", "outside-brain", text)]
