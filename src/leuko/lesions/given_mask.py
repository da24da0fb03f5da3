"""A mask that was made elsewhere: brought to the FLAIR, with the model's tissues around it.

Array axes run R, A, S.
"""

from dataclasses import replace

from leuko.errors import LeukoError
from leuko.io.outputs import Tell
from leuko.io.provenance import Finding, Level, Stopwatch, is_useless
from leuko.lesions.brain import find_outside, within_brain
from leuko.lesions.delineation import Delineation, delineate
from leuko.lesions.drawing import Checked, check, much_outside
from leuko.model.card import ModelCard
from leuko.model.predict import Prediction
from leuko.preprocessing.registration import Alignment
from leuko.preprocessing.slices import Pair
from leuko.volume import Array, Volume, resample_onto

LEAST_CHANGE = 0.05  # of a mask's volume by resampling, which is worth a warning
# A mask on its own scan is to 94 % or more brighter than the white matter around it; put on another
# person's brain, to 9 to 52 % (`experiments/foreign_masks.py`).
BRIGHTER, LEAST_BRIGHT = 1.1, 0.7


def on_flair(
    mask: Volume, flair: Volume, t1: Volume | None, alignment: Alignment | None, tell: Tell
) -> Array:
    """A mask on the grid of the FLAIR, bool (X, Y, Z).

    A mask on the grid of `t1`, the T1 as it was given, moves with the registration of the T1. If
    the mask was resampled, a finding gives its volume before and after. Raises LeukoError if no
    voxel of a mask that is not empty lies on the FLAIR.
    """
    if not mask.data.any():
        tell(Finding("note", "mask", f"{mask.name} is empty: it marks no WMH"))
    placed, grid = mask.canonical(), "its own grid"
    if placed.shares_grid_with(flair):
        return placed.data
    if alignment and t1 and placed.shares_grid_with(t1.canonical()):
        placed, grid = alignment.apply(placed), "the grid of the T1"
    given: Array = resample_onto(placed, flair).data >= 0.5
    before, after = mask.ml(mask.data), flair.ml(given)
    if before and not after:
        raise LeukoError(
            f"no voxel of {mask.name} lies within {flair.name}: expected a mask in the space of "
            "the FLAIR or on the grid of the T1; register it to the FLAIR, or correct its header"
        )
    is_small = abs(after - before) <= LEAST_CHANGE * before
    level: Level = "note" if is_small else "warning"
    changed = f"its volume changed from {before:.2f} mL to {after:.2f} mL"
    text = f"the mask was resampled from {grid} to that of the FLAIR: {changed}"
    tell(Finding(level, "mask-grid", text))
    return given


def around(
    mask: Array,
    prediction: Prediction,
    pair: Pair,
    card: ModelCard,
    *,
    flair: Volume,
    watch: Stopwatch,
) -> tuple[Delineation, Checked]:
    """Another tool's or a reader's mask (X, Y, Z) with the tissues that the model finds around it.

    Its lesions outside the brain are kept, with a finding. Caps and rims are those of the model
    outside the mask. The other arguments are as in `draw`.
    """
    with watch.stage("delineate"):
        drawn = delineate(prediction, pair.scan, card)
    with watch.stage("check"):
        checked = check(drawn, pair, card, flair=flair)
        findings, done = [*checked.findings], [*checked.checks]
        if checked.brain is not None and not is_useless(findings):
            drawn, _ = within_brain(drawn, checked.brain, checked.place)
            outside = find_outside(mask, checked.brain, checked.place, flair)
            findings += much_outside(outside, flair, "counted; check the mask there")
            findings += _faint(brighter_part(mask, drawn, flair))
            done += ["lesions outside the brain", "brightness of the mask"]
    rims = None if drawn.rims is None else drawn.rims & ~mask
    masks = replace(drawn, mask=mask, liberal=drawn.liberal | mask, rims=rims, own=drawn.mask)
    return masks, replace(checked, findings=tuple(findings), checks=tuple(done))


def brighter_part(mask: Array, drawn: Delineation, flair: Volume) -> float:
    """The part of a mask (X, Y, Z) where the FLAIR is at least `BRIGHTER` times as bright as the
    white matter around; nan for an empty mask, or if that is unknown."""
    level = drawn.level
    known = mask if level is None else mask & (level > 0)
    if level is None or not known.any():
        return float("nan")
    return float((flair.data[known] >= BRIGHTER * level[known]).mean())


def _faint(bright: float) -> list[Finding]:
    """A finding about a mask that is not bright on the FLAIR; `bright` is its brighter part."""
    if not bright < LEAST_BRIGHT:
        return []
    text = (
        f"only {100 * bright:.0f} % of the mask is brighter than the white matter around it "
        f"(expected at least {100 * LEAST_BRIGHT:.0f} %); check that mask and FLAIR are of one "
        "person and in the same space"
    )
    return [Finding("do not use", "faint-mask", text)]
